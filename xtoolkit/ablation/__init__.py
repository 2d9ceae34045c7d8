"""Tables of runs: columns that pretrain, rows that fine-tune or evaluate, seeds; what is finished is never run again."""
