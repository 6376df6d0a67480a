"""Live prediction: the newest model on the camera's frames, a page of it, and what a node says on the bus.

The camera's process also predicts: a second one would load numpy, Pillow and the runtime again, about 50 MB.
`feature` is the service's side; `child` the process; `chores` a process for what may wait: the personal
model and suggestions for the labelling page.
"""
