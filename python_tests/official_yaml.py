"""Files in the layout of the official training code, around a small model."""

MODEL = """
trainer: {target: trainer.Trainer}
model:
  target: models.unet.UNetModelSwin
  ckpt_path: ~
  params:
    image_size: 8
    in_channels: 3
    model_channels: 32
    out_channels: 3
    attention_resolutions: [8]
    dropout: 0
    channel_mult: [1]
    num_res_blocks: [1]
    conv_resample: True
    dims: 2
    use_fp16: False
    num_head_channels: 32
    use_scale_shift_norm: True
    resblock_updown: False
    swin_depth: 1
    swin_embed_dim: 32
    window_size: 8
    mlp_ratio: 1
    cond_lq: True
    lq_size: 8
diffusion:
  target: models.script_util.create_gaussian_diffusion
  params: {sf: 4, schedule_name: exponential, schedule_kwargs: {power: 0.3}, etas_end: 0.99, steps: 4,
    min_noise_level: 0.2, kappa: 2.0, weighted_mse: False, predict_type: xstart, timestep_respacing: ~,
    scale_factor: 1.0, normalize_input: True, latent_flag: True}
autoencoder:
  target: ldm.models.autoencoder.VQModelTorch
  ckpt_path: weights/autoencoder_vq_f4.pth
  use_fp16: True
  params:
    embed_dim: 3
    n_embed: 32
    ddconfig: {double_z: False, z_channels: 3, resolution: 256, in_channels: 3, out_ch: 3, ch: 32,
      ch_mult: [1, 1, 1], num_res_blocks: 1, attn_resolutions: [], dropout: 0.0, padding_mode: zeros}
"""

DEGRADATION = """
degradation:
  sf: 4
  resize_prob: [0.2, 0.7, 0.1]
  resize_range: [0.15, 1.5]
  gaussian_noise_prob: 0.5
  noise_range: [1, 30]
  poisson_scale_range: [0.05, 3.0]
  gray_noise_prob: 0.4
  jpeg_range: [30, 95]
  second_order_prob: 0.5
  second_blur_prob: 0.8
  resize_prob2: [0.3, 0.4, 0.3]
  resize_range2: [0.3, 1.2]
  gaussian_noise_prob2: 0.5
  noise_range2: [1, 25]
  poisson_scale_range2: [0.05, 2.5]
  gray_noise_prob2: 0.4
  jpeg_range2: [30, 95]
  gt_size: 32
  resize_back: False
  use_sharp: False
data:
  train:
    type: realesrgan
    params:
      dir_paths: [PHOTOS]
      txt_file_path: []
      im_exts: [png]
      io_backend: {type: disk}
      blur_kernel_size: 21
      kernel_list: [iso, aniso, generalized_iso, generalized_aniso, plateau_iso, plateau_aniso]
      kernel_prob: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
      sinc_prob: 0.1
      blur_sigma: [0.2, 3.0]
      betag_range: [0.5, 4.0]
      betap_range: [1, 2.0]
      blur_kernel_size2: 15
      kernel_list2: [iso, aniso, generalized_iso, generalized_aniso, plateau_iso, plateau_aniso]
      kernel_prob2: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
      sinc_prob2: 0.1
      blur_sigma2: [0.2, 1.5]
      betag_range2: [0.5, 4.0]
      betap_range2: [1, 2.0]
      final_sinc_prob: 0.8
      gt_size: 32
      crop_pad_size: 300
      use_hflip: True
      use_rot: False
      rescale_gt: True
  val: {type: base, params: {dir_path: testdata/lq, transform_type: default, need_path: True, im_exts: png}}
"""

TRAIN = """
train:
  lr: 5e-5
  lr_min: 2e-5
  lr_schedule: cosin
  warmup_iterations: 5000
  batch: [2, 1]
  microbatch: 1
  num_workers: 1
  prefetch_factor: 2
  weight_decay: 0
  ema_rate: 0.999
  iterations: 500000
  save_freq: 10000
  log_freq: [200, 2000, 1]
  loss_coef: [1.0, 0.0]
  local_logging: True
  tf_logging: False
  use_ema_val: True
  val_freq: ${train.save_freq}
  val_y_channel: True
  val_resolution: ${model.params.lq_size}
  val_padding_mode: reflect
  use_amp: False
  seed: 123456
  global_seeding: False
  compile: {flag: False, mode: reduce-overhead}
"""

REALSR = MODEL + DEGRADATION + TRAIN


def of_type(kind, params, train=TRAIN):
    """A file whose data are of this type, for a model of scale 1; `params` is indented text or "{}"."""
    return MODEL.replace("sf: 4", "sf: 1") + f"data: {{train: {{type: {kind}, params: {params}}}}}\n" + train
