"""NVIDIA's TensorRT, without ONNX Runtime: engines built for a device, and run through pycuda.

    versions   which TensorRT there is, and what each version wants said differently
    settings   what a build may be told, and which graphs are to be built
    network    a graph as TensorRT's parser reads it
    builder    ... and as its compiler makes an engine of it
    listening  what a build says while it lasts
    child      one build in a process of its own
    workshop   the builds of a bundle, watched: memory, progress, Ctrl-C
    identity   what an engine depends on
    engines    where engines lie, and which of them fit
    opening    whether they can run here, and if not, why
    device     CUDA: context, stream, memory
    backend    runs engines as the session's backend

Importing any of these imports neither TensorRT nor pycuda.
"""
