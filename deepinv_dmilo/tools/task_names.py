"""The names of the standard tasks; imports nothing, so that the command line can list them at once."""

#: tasks whose measurements are a picture of a known operator
PICTURE_TASKS = ("super-resolution", "inpainting", "box-inpainting", "deblurring", "nonlinear-deblurring", "denoising")
#: tasks whose measurements are no picture, or whose operator is drawn at random
SIMULATED_TASKS = ("motion-deblurring", "compressed-sensing", "phase-retrieval")
TASKS = (*PICTURE_TASKS, *SIMULATED_TASKS)
#: how pictures are made small: the mean over each new pixel (OpenCV's INTER_AREA); Pillow's filters; OpenCV's others,
#: that leave pixels out (linear is its default; nearest takes every n-th pixel, from the first on)
RESAMPLERS = ("area", "bilinear", "bicubic", "lanczos", "nearest", "opencv-linear", "opencv-cubic", "opencv-nearest")
#: options of the command line, and the tasks that they have an effect on
TASK_OPTIONS = {
    "factor": ("super-resolution",),
    "downsampling": ("super-resolution",),
    "missing": ("inpainting",),
    "blur_sigma": ("deblurring", "nonlinear-deblurring"),
    "linear_light": ("deblurring", "motion-deblurring"),
}
#: the paper's settings (``from_preset``) for its tasks
TASK_PRESETS = {
    "super-resolution": "super_resolution",
    "inpainting": "inpainting",
    "deblurring": "deblurring",
    "motion-deblurring": "deblurring",
    "nonlinear-deblurring": "nonlinear_deblurring",
}
