"""What is done with the pictures themselves: by ffmpeg where it is installed, by PyAV where it is not.

It is done in a process of its own, so that a cancel stops it in the middle of a frame, and a file that brings the
decoder down brings no worker down.
"""
