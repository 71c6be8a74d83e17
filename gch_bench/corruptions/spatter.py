"""What both forms of spatter share: its colours, and the constants of OpenCV's functions.

Source: hendrycks/robustness, make_imagenet_c.py. The reference calls OpenCV's Canny, distanceTransform, equalizeHist, filter2D
and blur. Both forms give the same results in whole numbers, which the tests check against OpenCV.
"""

import numpy as np

LAYER = 0  # the stream of the layer's normal draws
WATER = (175, 238, 238)  # RGB, pale turquoise
MUD = (63, 42, 20)  # RGB
LEAST_COVER = 0.8  # mud that covers less of a pixel leaves it clean
WEAK_EDGE, EDGE = 50, 150  # Canny's thresholds of the gradient, an L1 norm of two 3 x 3 Sobel filters
TANGENT = 13573  # tan(22.5 degrees) times 2^15, in OpenCV's fixed point: which neighbours lie across an edge
EMBOSS = np.array(((-2, -1, 0), (-1, 1, 1), (0, 1, 2)))
REACH = 20  # distances are cut off at so many pixels
DISTANCE_UNIT = 645  # int16 distances count 645 per pixel: all steps are whole to 1e-6, and 20 pixels and 31 steps fit
STRAIGHT, DIAGONAL, KNIGHT = (round(pixels * DISTANCE_UNIT) for pixels in (1.0, 1.4, 2.1969))  # OpenCV's 5 x 5 chamfer steps
