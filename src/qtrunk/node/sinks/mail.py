"""Alarms by e-mail: a digest of what came since the last one, never more often than `interval_s`."""

import smtplib
import ssl
from email.message import EmailMessage
from pathlib import Path

from qtrunk.control.alarms import Severity
from qtrunk.node.sinks.notice import Notice, SinkError
from qtrunk.node.sinks.settings import MailSettings

TIMEOUT_S = 20.0
BATCH_MAX = 200


class Mail:
    """One message for many notices, the worst first."""

    batch = BATCH_MAX

    def __init__(self, settings: MailSettings) -> None:
        self._settings = settings
        self.interval_s = settings.interval_s

    def send(self, notices: list[Notice]) -> None:
        """See Sink."""
        settings = self._settings
        try:
            context = ssl.create_default_context(cafile=settings.ca_certificate)
            server: smtplib.SMTP
            if settings.tls == "implicit":
                server = smtplib.SMTP_SSL(settings.host, settings.port, timeout=TIMEOUT_S, context=context)
            else:
                server = smtplib.SMTP(settings.host, settings.port, timeout=TIMEOUT_S)
            with server:
                if settings.tls == "starttls":
                    server.starttls(context=context)
                if settings.user is not None and settings.password_file is not None:
                    server.login(settings.user, Path(settings.password_file).read_text().strip())
                server.send_message(digest(notices, settings.sender, settings.to))
        except smtplib.SMTPResponseException as error:
            # The code alone: a server's words may repeat what it was told.
            is_final = 500 <= error.smtp_code < 600
            raise SinkError(f"mail server {settings.host}: status {error.smtp_code}", is_final=is_final) from None
        except (OSError, smtplib.SMTPException, ValueError) as error:
            raise SinkError(f"mail server {settings.host}: {type(error).__name__}") from None

    def close(self) -> None:
        """See Sink: nothing is held between two messages."""


def digest(notices: list[Notice], sender: str, to: list[str]) -> EmailMessage:
    """The message."""
    ordered = sorted(notices, key=lambda notice: -Severity.of(notice.severity))
    first = ordered[0]
    more = f" and {len(ordered) - 1} more" if len(ordered) > 1 else ""
    message = EmailMessage()
    message["From"], message["To"] = sender, ", ".join(to)
    message["Subject"] = f"[{first.network} {first.node}] {first.severity}: {first.type} on {first.resource}{more}"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content("\n".join(_paragraph(notice) for notice in ordered))
    return message


def _paragraph(notice: Notice) -> str:
    lines = [f"{notice.severity.upper()}  {notice.type} on {notice.resource}  {notice.time}", f"  {notice.text}"]
    if notice.severity != "cleared":
        lines.append(f"  do: {notice.remedy}")
    if notice.impacted:
        lines.append(f"  affected: {', '.join(notice.impacted)}")
    if notice.root_causes:
        lines.append(f"  follows from: {', '.join(notice.root_causes)}")
    return "\n".join([*lines, f"  ID {notice.id}", ""])
