"""What torchvision's DeepLab v3 on ResNet-50 calls the weights of `encoder_unet` with the atrous head."""

DEEPLAB = (
    (r"^backbone\.(layer\d+)_(\d+)", r"backbone.\1.\2"),
    (r"downsample_conv", "downsample.0"),
    (r"downsample_norm", "downsample.1"),
    (r"^head\.", "classifier.4."),
    (r"^atrous_head\.last_conv", "classifier.1"),
    (r"^atrous_head\.last_norm", "classifier.2"),
    (r"^atrous_head\.project_conv", "classifier.0.project.0"),
    (r"^atrous_head\.project_norm", "classifier.0.project.1"),
    (r"^atrous_head\.image_conv", "classifier.0.convs.4.1"),
    (r"^atrous_head\.image_norm", "classifier.0.convs.4.2"),
    (r"^atrous_head\.point_conv", "classifier.0.convs.0.0"),
    (r"^atrous_head\.point_norm", "classifier.0.convs.0.1"),
    *((rf"^atrous_head\.atrous{i}_conv", f"classifier.0.convs.{i + 1}.0") for i in range(3)),
    *((rf"^atrous_head\.atrous{i}_norm", f"classifier.0.convs.{i + 1}.1") for i in range(3)),
)
"""(pattern, replacement) one after another, on names with dots."""
