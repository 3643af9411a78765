"""One convolution in PyTorch on a CUDA device, for the benchmark: cuDNN in f32, without TF32.

A whole call uploads the input, convolves and reads the output back; the span "compute" is many convolutions of a
tensor on the device and one wait.
"""
import torch

from conv_server import each_call, serve

torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False
# cuDNN tries its algorithms on the first call of a shape, as burn and tuned kernels do.
torch.backends.cudnn.benchmark = True


class Layer:
    def __init__(self, request, x, w):
        self.host = torch.from_numpy(x.copy()).pin_memory()
        self.device_input = self.host.cuda()
        self.weight = torch.from_numpy(w.copy()).cuda()
        self.options = {
            "stride": request["stride"],
            "padding": request["padding"],
            "groups": request["groups"],
        }
        self.note = "cuDNN f32, TF32 off"
        with torch.inference_mode():
            self.result = self.convolve(self.device_input).cpu().pin_memory()

    def convolve(self, x):
        return torch.nn.functional.conv2d(x, self.weight, None, **self.options)

    @torch.inference_mode()
    def whole(self):
        self.result.copy_(self.convolve(self.host.cuda(non_blocking=True)))
        torch.cuda.synchronize()

    def run(self):
        self.whole()
        return self.result.numpy()

    @torch.inference_mode()
    def time(self, calls, span, clock):
        if span == "whole":
            return each_call(calls, clock, self.whole)
        torch.cuda.synchronize()
        begin = clock()
        for _ in range(calls):
            self.convolve(self.device_input)
        torch.cuda.synchronize()
        return [(clock() - begin) / calls]


def about():
    name = torch.cuda.get_device_name()
    return f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {name}"


if __name__ == "__main__":
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device")
    serve(about, Layer)
