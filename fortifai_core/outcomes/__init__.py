"""What results say and how sure we are: time to failure, intervals, survival, agreement, the paper."""
