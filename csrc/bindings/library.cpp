// All schemas of the library, and the CPU kernels registered under them. Ops are functional: they
// mutate nothing. Activations: 0 none, 1 relu, 2 relu6. Results that were not asked for are [0].
#include "bindings/batch_norm.h"
#include "bindings/batch_norm_vectors.h"
#include "bindings/depthwise_conv.h"
#include "bindings/device_cpu.h"
#include "bindings/image_conv.h"
#include "bindings/image_patches.h"
#include "bindings/mobilenet.h"
#include "bindings/pointwise_conv.h"
#include "bindings/separable_convs.h"

namespace mobilenet_ext {

STABLE_TORCH_LIBRARY(mobilenet_ext, m) {
  m.def(
      "depthwise_conv(Tensor input, Tensor weight, Tensor? input_scale, Tensor? input_shift, "
      "int input_activation, Tensor? output_scale, Tensor? output_shift, int output_activation, "
      "bool statistics, int stride, int pad_left, int pad_right, int pad_top, int pad_bottom, "
      "int dilation) -> (Tensor output, Tensor mean, Tensor var)");
  m.def(
      "depthwise_conv_backward(Tensor grad_output, Tensor? output, Tensor? output_scale, "
      "Tensor? output_shift, int output_activation, Tensor? grad_scale, Tensor? raw_scale, "
      "Tensor? raw_shift, Tensor input, Tensor weight, Tensor? input_scale, Tensor? input_shift, "
      "Tensor? input_mean, int input_activation, int stride, int pad_left, int pad_right, "
      "int pad_top, int pad_bottom, int dilation, bool need_grad_input, bool need_grad_weight) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_sum, Tensor grad_dot)");
  m.def(
      "pointwise_conv(Tensor input, Tensor weight, Tensor? input_scale, Tensor? input_shift, "
      "int input_activation, Tensor? output_scale, Tensor? output_shift, int output_activation, "
      "bool statistics) -> (Tensor output, Tensor mean, Tensor var)");
  m.def(
      "pointwise_conv_backward(Tensor grad_output, Tensor? output, Tensor? output_scale, "
      "Tensor? output_shift, int output_activation, Tensor? grad_scale, Tensor? raw_scale, "
      "Tensor? raw_shift, Tensor input, Tensor weight, Tensor? input_scale, Tensor? input_shift, "
      "Tensor? input_mean, int input_activation, bool need_grad_input, bool need_grad_weight) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_sum, Tensor grad_dot)");
  m.def(
      "separable_convs(Tensor input, Tensor? mean, Tensor? var, Tensor?[] tensors, float[] eps, "
      "int[] options, bool statistics) -> Tensor[]");
  m.def(
      "separable_convs_backward(Tensor grad_output, Tensor[] maps, Tensor[] weights, "
      "Tensor[] vectors, int[] options, int[] flags, bool need_input, Tensor? image=None, "
      "Tensor? stem=None, int[] stem_options=[]) -> Tensor[]");
  m.def(
      "image_conv(Tensor input, Tensor weight, bool statistics, int stride, int pad_left, "
      "int pad_right, int pad_top, int pad_bottom) -> (Tensor output, Tensor mean, Tensor var)");
  m.def(
      "image_conv_backward(Tensor grad_output, Tensor? output, Tensor? grad_scale, "
      "Tensor? raw_scale, Tensor? raw_shift, Tensor input, Tensor weight, int stride, "
      "int pad_left, int pad_right, int pad_top, int pad_bottom) -> Tensor");
  m.def(
      "image_patches(Tensor input, int kernel, int stride, int pad_left, int pad_right, "
      "int pad_top, int pad_bottom) -> Tensor");
  m.def("batch_norm_statistics(Tensor input) -> (Tensor mean, Tensor var)");
  m.def("scale_shift_act(Tensor input, Tensor scale, Tensor shift, int activation) -> Tensor");
  m.def(
      "scale_shift_act_backward_reduce(Tensor grad_output, Tensor input, Tensor scale, "
      "Tensor shift, int activation, Tensor mean) -> (Tensor grad_sum, Tensor grad_dot)");
  m.def(
      "scale_shift_act_backward(Tensor grad_output, Tensor input, Tensor? scale, Tensor? shift, "
      "int activation, Tensor grad_scale, Tensor? raw_scale, Tensor? raw_shift) -> Tensor");
  m.def(
      "batch_norm_affine(Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, "
      "int count) -> (Tensor scale, Tensor shift, Tensor invstd, Tensor unbiased_var)");
  m.def(
      "batch_norm_gradient_map(Tensor grad_sum, Tensor grad_dot, Tensor scale, Tensor mean, "
      "Tensor invstd, int count) -> (Tensor grad_weight, Tensor raw_scale, Tensor raw_shift)");
  m.def(
      "mobilenet(Tensor input, Tensor weight, Tensor layers, int outputs, bool has_classifier, "
      "int activation) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mobilenet_ext, CPU, m) {
  m.impl("depthwise_conv", TORCH_BOX(&depthwise_conv<Cpu>));
  m.impl("depthwise_conv_backward", TORCH_BOX(&depthwise_conv_backward<Cpu>));
  m.impl("pointwise_conv", TORCH_BOX(&pointwise_conv<Cpu>));
  m.impl("pointwise_conv_backward", TORCH_BOX(&pointwise_conv_backward<Cpu>));
  m.impl("separable_convs", TORCH_BOX(&separable_convs<Cpu>));
  m.impl("separable_convs_backward", TORCH_BOX(&separable_convs_backward<Cpu>));
  m.impl("image_conv", TORCH_BOX(&image_conv<Cpu>));
  m.impl("image_conv_backward", TORCH_BOX(&image_conv_backward<Cpu>));
  m.impl("image_patches", TORCH_BOX(&image_patches<Cpu>));
  m.impl("batch_norm_statistics", TORCH_BOX(&batch_norm_statistics<Cpu>));
  m.impl("scale_shift_act", TORCH_BOX(&scale_shift_act<Cpu>));
  m.impl("scale_shift_act_backward_reduce", TORCH_BOX(&scale_shift_act_backward_reduce<Cpu>));
  m.impl("scale_shift_act_backward", TORCH_BOX(&scale_shift_act_backward<Cpu>));
  m.impl("batch_norm_affine", TORCH_BOX(&batch_norm_affine<Cpu>));
  m.impl("batch_norm_gradient_map", TORCH_BOX(&batch_norm_gradient_map<Cpu>));
  m.impl("mobilenet", TORCH_BOX(&mobilenet<Cpu>));
}

}  // namespace mobilenet_ext
