"""Measure steering: strips and curves over strengths, a table of rules, and the judges that label images."""
