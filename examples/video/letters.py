"""Letters: whoever left an address is told that the video is ready. One of those who listen; others may follow."""

from __future__ import annotations

from email.message import EmailMessage

from carteiro import Router
from examples.video import shelf
from examples.video.upload import Upload
from examples.video.work import Published

router = Router()


@router.subscriber("videos.ready", group="letters")
def write(published: Published) -> None:
    """Leaves the letter in the video's folder, where a service of your own would send it."""
    upload = shelf.get(published.video, "upload.json", Upload)
    if upload is None or upload.email is None:
        return
    letter = EmailMessage()
    letter["To"] = upload.email
    letter["Subject"] = f"{upload.name} is ready"
    letter.set_content(f"In {', '.join(one.size for one in published.renditions)}: /videos/{published.video}\n")
    shelf.put(published.video, "letter.eml", letter.as_string())
