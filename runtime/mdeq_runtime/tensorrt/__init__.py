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
    worker     the one thread that uses the GPU
    device     CUDA: context, stream, memory
    capture    what a frame queues, recorded as a CUDA graph
    state      a stream's buffers, on the device
    loading    an engine's file becomes one that can run
    running    engines side by side, in one memory to work in
    backend    all of this as the session's backend

Importing any of these imports neither TensorRT nor pycuda.
"""
