"""`pretrain check`: inside of an allocation, before the first step, on every rank that the run will have.

Started like the run itself, with the same words behind it, by srun, mpirun, torchrun or deepspeed:

    srun … python -m launcher.probe --exclude-to FILE --hostfile-to FILE [the words of launcher.train]

Rank 0 asks all ranks over plain TCP sockets, in at most 2 log2(hosts) + 4 rounds, each with a time-out, so that a host
that hangs or was cut off is named instead of waited for. Exit code, the same on every rank that could be told:

    0   all hosts are fit
    2   something for the user to mend: hosts with other code, recipe, shards or versions; too little disk
    75  hosts are unfit: FILE of --exclude-to names them (one line, a,b,c, as Slurm's --exclude takes it), that of
        --hostfile-to lists the others (`host slots=N`); start again without them

Both files are removed first and written only where there are such hosts. Where rank 0 itself cannot be reached, the
first rank of the second host asks the others, and names rank 0's host where most of them agree; all end with 75.
"""
