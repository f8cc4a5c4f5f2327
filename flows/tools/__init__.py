"""What looks at finished work: why a stage is to do, traces, exports, comparisons; and at this machine."""
