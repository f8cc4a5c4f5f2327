"""KR-test questions about a text: made, checked, and answered by baselines that know no model."""
