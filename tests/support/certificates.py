"""A certificate authority for one test."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, kw_only=True)
class Authority:
    """The authority's certificate as a file, and its signing key."""

    certificate: Path
    key: ec.EllipticCurvePrivateKey
    own: x509.Certificate

    @classmethod
    def create(cls, folder: Path) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        own = _signed(f"authority {uuid4()}", key, issuer=None, by=key, authority=True)
        path = folder / "ca.pem"
        path.write_bytes(own.public_bytes(serialization.Encoding.PEM))
        return cls(certificate=path, key=key, own=own)

    def certify(self, host: str) -> tuple[Path, Path]:
        """Write a key and a certificate for a server of this name, readable by servers of other users."""
        key = ec.generate_private_key(ec.SECP256R1())
        signed = _signed(host, key, issuer=self.own, by=self.key, authority=False)
        paths = (self.certificate.with_name(f"{host}.key"), self.certificate.with_name(f"{host}.pem"))
        paths[0].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        paths[1].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return paths


def _signed(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Certificate | None,
    by: ec.EllipticCurvePrivateKey,
    authority: bool,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if not authority:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(by, hashes.SHA256())
