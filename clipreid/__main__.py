"""`python -m clipreid` is the `clipreid` command, for launchers: `torchrun --nproc_per_node 2 -m clipreid ...`."""

from clipreid.cli import main

if __name__ == "__main__":
    main()
