"""SAGA-ReID: aggregate the patches of a trained run's tower, guided by text anchors (arXiv 2604.22190).

The default, --mode frozen, continues a trained run and needs --init RUN; --mode joint trains from the backbone, in one
stage with the second one of CLIP-ReID.

    accelerate launch recipes/clipreid_stage2.py --output runs/demo
    accelerate launch recipes/saga.py --init runs/demo --output runs/saga       # a third stage, on the frozen tower
    accelerate launch recipes/saga.py --mode joint                              # or together with the second stage
    accelerate launch recipes/saga.py --init runs/demo --anchors free           # controls: free vectors,
    accelerate launch recipes/saga.py --init runs/demo --kind repeated          # the mean patch for every anchor,
    accelerate launch recipes/saga.py --init runs/demo --kind mean              # the mean patch alone,
    accelerate launch recipes/saga.py --init runs/demo --no-feed-forward        # without the feed-forward network,
    accelerate launch recipes/saga.py --init runs/demo --score uniform          # every patch counts alike

Backbone, data and what shapes the tower are those of the run that is continued. What comes out is a whole run folder of
its own; the test feature is the weighted fusion of `saga`, `final` and `projection` (`--fuse-saga` and so on), and
`clipreid evaluate` shows each part.

The whole method is `clipreid/methods/saga.py`; the aggregation is `clipreid/aggregation/saga.py`.
"""

from clipreid.methods import saga
from clipreid.training.launch import launch

if __name__ == "__main__":
    launch(saga, __doc__)
