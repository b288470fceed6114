"""A driving loop: a car on a race track, a camera, drivers that see pixels or states, monitors.

Places are in metres and headings in radians, as the simulator has them: y grows downwards in its
picture, so that a heading that grows turns to the right. Steering is a share of 45 degrees, from
-1 (left) to 1 (right).
"""

from modelsec.driving.camera import Camera, frames, track
from modelsec.driving.cars import HZ, SPEED, WHEEL, Car, expert, map_steering, new_car, pose
from modelsec.driving.loop import (
    Drive,
    Driver,
    Tamper,
    Watch,
    by_state,
    drive,
    held,
    nearest_wheel,
    steering_of,
    student,
    told_by,
)
from modelsec.driving.monitor import Monitor, copies, map_monitor, pixel_monitor

__all__ = [
    "HZ",
    "SPEED",
    "WHEEL",
    "Camera",
    "Car",
    "Drive",
    "Driver",
    "Monitor",
    "Tamper",
    "Watch",
    "by_state",
    "copies",
    "drive",
    "expert",
    "frames",
    "held",
    "map_monitor",
    "map_steering",
    "nearest_wheel",
    "new_car",
    "pixel_monitor",
    "pose",
    "steering_of",
    "student",
    "told_by",
    "track",
]
