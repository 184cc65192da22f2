"""Evaluation on held-out prompts: comparison, inference and judge accuracy.

  side_by_side     compares policies by judges, and writes the report
  infer            writes completions of prompts with their log-probabilities
  judge_accuracy   measures judges on labelled pairs
  judge_agreement  compares judges with one that counts as the truth
  judge_measures   the accuracy and calibration of a judge
  task_metrics     the metrics of a seqio task, as measures and as a judge
  statistics       estimates with their 95 % intervals

Run files name these modules, and the first three are what RUN starts.
"""
