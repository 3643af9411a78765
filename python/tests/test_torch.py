"""Coded convolutions in PyTorch; skipped, visibly, where torch is not installed."""

import numpy as np
import pytest
from conftest import assert_close

torch = pytest.importorskip("torch", reason="torch is not installed")

import fcdcc  # noqa: E402
import fcdcc.torch  # noqa: E402


@pytest.mark.parametrize(
    "conv",
    [
        lambda: torch.nn.Conv2d(3, 8, 3, padding=1),
        lambda: torch.nn.Conv2d(4, 8, (3, 2), stride=(2, 1), groups=2, bias=False),
        lambda: torch.nn.Conv2d(3, 8, 4, dilation=2, padding="same"),
    ],
)
def test_modules_compute_what_torch_computes(pool, conv):
    torch.manual_seed(0)
    conv = conv().eval()
    coded = fcdcc.torch.CodedConv2d.from_conv(conv, pool, tolerate=2)
    assert coded.report is None
    for count in (1, 2):
        x = torch.randn(count, conv.in_channels, 17, 13)
        with torch.no_grad():
            assert_close(coded(x).numpy(), conv(x).numpy())
    assert coded.report.recovery_threshold == 4
    with torch.no_grad():
        assert coded(x[0]).shape == conv(x[0]).shape


def test_models_are_encoded_in_place(pool):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.BatchNorm2d(8)),
        torch.nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect"), torch.nn.Flatten(), torch.nn.Linear(400, 10),
    ).eval()  # fmt: skip
    x = torch.randn(2, 1, 12, 12)
    with torch.no_grad():
        expected = model(x)
        assert fcdcc.torch.encode_model(model, pool) == ["0", "2.0"]
        assert isinstance(model[0], fcdcc.torch.CodedConv2d) and isinstance(model[3], torch.nn.Conv2d)
        assert_close(model(x).numpy(), expected.numpy())
    assert model[2][0].report.name == "2.0"


def test_filters_are_those_that_the_convolution_had(pool):
    conv = torch.nn.Conv2d(1, 4, 3).eval()
    coded = fcdcc.torch.CodedConv2d.from_conv(conv, pool)
    x = torch.randn(1, 1, 12, 12)
    with torch.no_grad():
        expected = conv(x).numpy()
        conv.weight.zero_()
        conv.bias.add_(5.0)
        assert_close(coded(x).numpy(), expected)


def test_gradients_and_wrong_modules_are_refused(pool):
    coded = fcdcc.torch.CodedConv2d.from_conv(torch.nn.Conv2d(1, 4, 3), pool)
    with pytest.raises(RuntimeError, match="no_grad"):
        coded(torch.zeros(1, 1, 8, 8, requires_grad=True))
    with pytest.raises(TypeError):
        fcdcc.torch.CodedConv2d.from_conv(torch.nn.Conv1d(1, 4, 3), pool)
    with pytest.raises(ValueError, match="padding_mode"):
        fcdcc.torch.CodedConv2d.from_conv(torch.nn.Conv2d(1, 4, 3, padding_mode="circular"), pool)


def test_tensors_go_into_models(pool, tmp_path):
    pytest.importorskip("onnxruntime")
    from conftest import conv_net, oracle

    path = conv_net(tmp_path / "net.onnx")
    prepared = fcdcc.Model(path).prepare(pool)
    x = torch.randn(2, 3, 16, 12, requires_grad=True)
    assert_close(prepared.run(x)[0], oracle(path, {"x0": x.detach().numpy()})[0])
    assert np.asarray(prepared.run(x)[0]).dtype == np.float32


def test_bfloat16_tensors_keep_their_values():
    from fcdcc._arrays import as_array, with_bfloat16

    x = torch.randn(3, 5).to(torch.bfloat16)
    got = as_array(x).astype(np.float32)
    assert np.array_equal(got, x.float().numpy())
    bits = x.contiguous().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(with_bfloat16(bits).astype(np.float32), x.float().numpy())
