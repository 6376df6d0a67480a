"""Gradients made of TFLite builtins, for the operations whose own gradients TFLite cannot express.

`tf.gradients` looks a gradient up by the name that `Graph.gradient_override_map` left on an operation. Both
are public, and nothing of TensorFlow's registry is changed: outside `builtin_gradients` all is as before.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import tensorflow as tf

from apiary.errors import ExportError

Tensor = Any
Operation = Any
_PREFIX: Final = "Apiary"


@contextlib.contextmanager
def builtin_gradients() -> Iterator[None]:
    """Operations made inside, in the graph of the running trace, are differentiated by builtins."""
    graph = tf.compat.v1.get_default_graph()
    with graph.gradient_override_map({name: _PREFIX + name for name in _GRADIENTS}):
        yield


def _of_output(rule: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Operation, Tensor], Tensor]:
    """A gradient that follows from the operation's output y and the gradient g alone: `rule(y, g)`."""

    def gradient(op: Operation, g: Tensor) -> Tensor:
        with _late(g):
            return rule(op.outputs[0], g)

    return gradient


def _strided_slice(op: Operation, g: Tensor) -> tuple[Tensor, None, None, None]:
    """Zeros around what was cut out: a slice of constant bounds and step 1, axes dropped or kept."""
    x = op.inputs[0]
    begin, end, step = (tf.get_static_value(i) for i in op.inputs[1:4])
    if begin is None or end is None or step is None or any(s != 1 for s in step):
        raise ExportError(f"{op.name}: a slice of bounds or steps that vary cannot be exported")
    if op.get_attr("ellipsis_mask") or op.get_attr("new_axis_mask"):
        raise ExportError(f"{op.name}: a slice with an ellipsis or a new axis cannot be exported")
    from_start, to_end = op.get_attr("begin_mask"), op.get_attr("end_mask")
    dropped = op.get_attr("shrink_axis_mask")
    around, kept = [], []
    for axis, size in enumerate(x.shape):
        first, last = 0, size
        if axis < len(begin):
            first = 0 if from_start >> axis & 1 else int(begin[axis]) % size
            # A bound past the end means the end, as in Python.
            last = size if to_end >> axis & 1 else min(size, int(end[axis]) + (size if end[axis] < 0 else 0))
            if dropped >> axis & 1:
                last = first + 1
        around.append([first, size - last])
        kept.append(last - first)
    return tf.pad(tf.reshape(g, kept), around), None, None, None


def _bias_add(_: Operation, g: Tensor) -> tuple[Tensor, Tensor]:
    return g, tf.reduce_sum(g, list(range(len(g.shape) - 1)))


def _conv2d(op: Operation, g: Tensor) -> tuple[Tensor, Tensor]:
    """Input: a transposed convolution. Filter: what each place of the window saw, times the gradient."""
    x, kernel = op.inputs
    window = _Window(op, kernel.shape[0], kernel.shape[1], x.shape)
    rows = g.shape[0] * g.shape[1] * g.shape[2]
    flat_g = tf.reshape(g, [rows, g.shape[3]])
    # One place of the window after the other: all in one matrix are as fast, and nine times as large.
    taps, last = [], g
    padded = window.pad(x, after=g)
    for place in window.places:
        view = window.view(padded, g.shape, place, after=last)
        last = tf.matmul(tf.reshape(view, [rows, x.shape[3]]), flat_g, transpose_a=True)
        taps.append(last)
    d_kernel = tf.reshape(tf.concat(taps, 0), kernel.shape)
    with _late(d_kernel):  # the patches are gone before the next large tensor comes
        d_x = tf.nn.conv2d_transpose(g, kernel, x.shape, [window.down, window.right], padding=window.padding)
    return d_x, d_kernel


def _depthwise(op: Operation, g: Tensor) -> tuple[Tensor, Tensor]:
    """Input: the gradient, spread by the stride, through the flipped kernel. Filter: sums over windows."""
    x, kernel = op.inputs
    height, width, _, multiplier = kernel.shape
    if multiplier != 1:
        raise ExportError(f"{op.name}: a depth multiplier of {multiplier} cannot be exported, expected 1")
    window = _Window(op, height, width, x.shape)
    if window.down != window.right:
        raise ExportError(f"{op.name}: unlike strides {window.down} and {window.right} cannot be exported")
    sums, last = [], g
    padded = window.pad(x, after=g)
    for place in window.places:
        last = tf.reduce_sum(window.view(padded, g.shape, place, after=last) * g, [0, 1, 2])
        sums.append(last)
    d_kernel = tf.reshape(tf.stack(sums), kernel.shape)
    stride = window.down
    spread = g
    if stride > 1:
        zeros = [tf.zeros_like(g)] * (stride * stride - 1)
        spread = tf.nn.depth_to_space(tf.concat([g, *zeros], -1), stride)
    # The padded picture's gradient: a full correlation with the kernel turned by 180 degrees.
    tall, wide = window.padded(x.shape)
    spread = spread[:, : tall - height + 1, : wide - width + 1, :]
    below, beside = tall - spread.shape[1], wide - spread.shape[2]
    spread = tf.pad(spread, [[0, 0], [height - 1, below], [width - 1, beside], [0, 0]])
    # One axis at a time: tflite-runtime 2.14 miscomputes a reverse over several.
    turned = tf.reverse(tf.reverse(kernel, [0]), [1])
    d_padded = tf.nn.depthwise_conv2d(spread, turned, [1, 1, 1, 1], "VALID")
    top, left = window.top[0], window.left[0]
    return d_padded[:, top : top + x.shape[1], left : left + x.shape[2], :], d_kernel


def _max_pool(op: Operation, g: Tensor) -> Tensor:
    """The first maximum of a window, in reading order, takes all, as in TensorFlow."""
    x, y = op.inputs[0], op.outputs[0]
    size = _pool_size(op)
    inside = x[:, : y.shape[1] * size, : y.shape[2] * size, :]
    free, parts = tf.ones_like(y), []
    for i in range(size):
        for j in range(size):
            hit = free * tf.cast(tf.equal(inside[:, i::size, j::size, :], y), g.dtype)
            free -= hit
            parts.append(hit * g)
    return _unpool(parts, size, x.shape)


def _avg_pool(op: Operation, g: Tensor) -> Tensor:
    size = _pool_size(op)
    return _unpool([g / float(size * size)] * (size * size), size, op.inputs[0].shape)


def _unpool(parts: list[Tensor], size: int, shape: Any) -> Tensor:
    d_x = tf.nn.depth_to_space(tf.concat(parts, -1), size)
    below, beside = shape[1] - d_x.shape[1], shape[2] - d_x.shape[2]
    return tf.pad(d_x, [[0, 0], [0, below], [0, beside], [0, 0]]) if below or beside else d_x


def _late(g: Tensor) -> Any:
    """Nothing of a gradient before `g` is there: the converter keeps that order, and memory peaks lower.

    Without it, what hangs on the forward pass alone is computed in it, and lies around until it is used.
    """
    return tf.control_dependencies([g])


class _Window:
    """How a convolution's window moves over its padded input."""

    def __init__(self, op: Operation, height: int, width: int, shape: Any):
        self.padding = op.get_attr("padding").decode()
        strides, dilations = op.get_attr("strides"), op.get_attr("dilations")
        if op.get_attr("data_format") != b"NHWC" or set(dilations) != {1} or self.padding == "EXPLICIT":
            raise ExportError(f"{op.name}: only NHWC, no dilation, padding same or valid can be exported")
        if None in shape.as_list():
            raise ExportError(f"{op.name}: the training step needs a fixed batch, got {shape}")
        self.height, self.width, self.down, self.right = height, width, strides[1], strides[2]
        same = self.padding == "SAME"
        self.top = _same(shape[1], height, self.down) if same else (0, 0)
        self.left = _same(shape[2], width, self.right) if same else (0, 0)

    def padded(self, shape: Any) -> tuple[int, int]:
        """Height and width of the padded input."""
        return shape[1] + sum(self.top), shape[2] + sum(self.left)

    @property
    def places(self) -> list[tuple[int, int]]:
        """Row and column of each place in the window."""
        return [(i, j) for i in range(self.height) for j in range(self.width)]

    def pad(self, x: Tensor, after: Tensor) -> Tensor:
        """The padded input, made after `after`."""
        if not any(self.top + self.left):
            return x
        with _late(after):
            return tf.pad(x, [[0, 0], self.top, self.left, [0, 0]])

    def view(self, padded: Tensor, out: Any, place: tuple[int, int], after: Tensor) -> Tensor:
        """What a place in the window saw: [B, out height, out width, C]."""
        i, j = place
        tall, wide = (out[1] - 1) * self.down + 1, (out[2] - 1) * self.right + 1
        with _late(after):
            return padded[:, i : i + tall : self.down, j : j + wide : self.right, :]


def _same(size: int, window: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding `same`: the odd pixel goes to the end."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _pool_size(op: Operation) -> int:
    size, strides = op.get_attr("ksize"), op.get_attr("strides")
    same = op.get_attr("padding") == b"SAME" and any(d % size[1] for d in op.inputs[0].shape[1:3])
    if list(size) != list(strides) or size[1] != size[2] or same:
        raise ExportError(
            f"{op.name}: pooling of {size[1:3]} by {strides[1:3]} cannot be exported, expected square "
            "windows that move by their size, with padding valid"
        )
    return int(size[1])


_GRADIENTS: Final[dict[str, Callable[..., Any]]] = {
    "Relu": _of_output(lambda y, g: tf.where(y > 0, g, 0.0)),
    "Relu6": _of_output(lambda y, g: tf.where(tf.logical_and(y > 0, y < 6), g, 0.0)),
    "Tanh": _of_output(lambda y, g: g * (1.0 - y * y)),
    "Sigmoid": _of_output(lambda y, g: g * y * (1.0 - y)),
    "StridedSlice": _strided_slice,
    "BiasAdd": _bias_add,
    "Conv2D": _conv2d,
    "DepthwiseConv2dNative": _depthwise,
    "MaxPool": _max_pool,
    "AvgPool": _avg_pool,
}
for _name, _function in _GRADIENTS.items():
    tf.RegisterGradient(_PREFIX + _name)(_function)
