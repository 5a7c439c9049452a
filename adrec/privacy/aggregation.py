"""Secure aggregation: a server learns the sum of its clients' vectors, and of each vector nothing (Bonawitz et al. 2017).

Every pair of clients agrees on a mask that one adds and the other takes away; each adds a mask of its own besides. Where a
client falls out after it shared its keys, the others give the server shares of what is left over in the sum: of the pairs'
key of who fell out, or of the own mask of who answered, never of both. Vectors are whole numbers modulo 2^64, so that the sum
is exact. Server and clients are taken to follow the protocol and to be curious (the paper's first model): nothing is signed.

Costs for n clients and vectors of d numbers: n messages of n shares, and n d numbers of key stream a client.
"""

import secrets
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from adrec.errors import AdrecError

Words = NDArray[np.uint64]
FRACTION_BITS = 24
"""Of a number in fixed point: steps of 6e-8, up to 2.7e11."""
_PRIME = 2**521 - 1
_SHARE_BYTES = 66
_SECRET_BYTES = 32


def fixed(values: NDArray[np.floating]) -> Words:
    """Numbers as multiples of 2^-24, modulo 2^64. Raises AdrecError beyond what they hold."""
    scaled = np.rint(np.asarray(values, np.float64) * 2.0**FRACTION_BITS)
    if not np.isfinite(scaled).all() or np.abs(scaled).max(initial=0.0) >= 2.0**62:
        raise AdrecError("federated: a client's update is too large to be summed. Lower training.learning_rate or set `clip`.")
    return scaled.astype(np.int64).view(np.uint64)


def loose(words: Words) -> NDArray[np.float64]:
    """The numbers that `fixed` wrote, or a sum of them."""
    return words.view(np.int64) / 2.0**FRACTION_BITS


@dataclass(frozen=True)
class PublicKeys:
    """What a client tells everybody."""

    channel: bytes
    mask: bytes


@dataclass
class Client:
    """One client's side of one sum. `number` tells clients apart; `threshold` of them together can undo a mask."""

    number: int
    threshold: int
    _channel: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)
    _mask: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)
    _own: bytes = field(default_factory=lambda: secrets.token_bytes(_SECRET_BYTES), repr=False)
    _peers: dict[int, PublicKeys] = field(default_factory=dict, repr=False)
    _received: dict[int, bytes] = field(default_factory=dict, repr=False)

    def keys(self) -> PublicKeys:
        """Round 0."""
        return PublicKeys(self._channel.public_key().public_bytes_raw(), self._mask.public_key().public_bytes_raw())

    def shares(self, peers: Mapping[int, PublicKeys]) -> dict[int, bytes]:
        """Round 1: for each other client a message that only it can read, with its shares of two secrets of this one."""
        self._peers = {number: keys for number, keys in peers.items() if number != self.number}
        numbers = sorted(peers)
        of_key = split_secret(self._mask.private_bytes_raw(), numbers, self.threshold)
        of_own = split_secret(self._own, numbers, self.threshold)
        self._received[self.number] = of_key[self.number] + of_own[self.number]
        return {
            peer: self._sealed(peer, of_key[peer] + of_own[peer]) for peer in numbers if peer != self.number
        }  # fmt: skip

    def masked(self, words: Words, messages: Mapping[int, bytes]) -> Words:
        """Round 2: the vector under its masks. `messages` of round 1, by who sent them: with those clients masks are shared."""
        for peer, message in messages.items():
            self._received[peer] = self._opened(peer, message)
        total = words + stream(self._own, len(words))
        for peer in messages:
            mask = stream(self._agreed(self._mask, self._peers[peer].mask, b"mask"), len(words))
            total = total + mask if self.number < peer else total - mask
        return np.asarray(total, np.uint64)

    def revealed(self, answered: Sequence[int]) -> dict[int, bytes]:
        """Round 3: of each client that answered the share of its own mask, of each that fell out the share of its key."""
        return {
            peer: held[_SHARE_BYTES:] if peer in set(answered) else held[:_SHARE_BYTES] for peer, held in self._received.items()
        }

    def _agreed(self, own: X25519PrivateKey, other: bytes, purpose: bytes) -> bytes:
        return derived(own.exchange(X25519PublicKey.from_public_bytes(other)), purpose)

    def _sealed(self, peer: int, content: bytes) -> bytes:
        nonce = secrets.token_bytes(12)
        key = self._agreed(self._channel, self._peers[peer].channel, b"channel")
        return nonce + AESGCM(key).encrypt(nonce, content, struct.pack("<qq", self.number, peer))

    def _opened(self, peer: int, message: bytes) -> bytes:
        key = self._agreed(self._channel, self._peers[peer].channel, b"channel")
        return AESGCM(key).decrypt(message[:12], message[12:], struct.pack("<qq", peer, self.number))


def unmasked(
    masked: Mapping[int, Words],
    shared: Sequence[int],
    keys: Mapping[int, PublicKeys],
    revealed: Mapping[int, Mapping[int, bytes]],
    threshold: int,
) -> Words:
    """The server's last step: the sum of the vectors of all who answered in round 2 (`masked`).

    `shared`: who answered in round 1; `revealed`: what clients answered in round 3. Raises AdrecError where they are too few.
    """
    if len(revealed) < threshold:
        raise AdrecError(
            f"federated: {len(revealed)} of {len(shared)} clients answered, and {threshold} are needed to undo the masks. "
            "Lower `threshold`, or take more clients a round."
        )
    total: Words = np.asarray(np.sum(np.stack(list(masked.values())), axis=0, dtype=np.uint64))
    for number in shared:
        secret = joined_secret({helper: shares[number] for helper, shares in revealed.items()}, threshold)
        if number in masked:
            total = total - stream(secret, len(total))
            continue
        own = X25519PrivateKey.from_private_bytes(secret)
        for peer in masked:
            agreed = derived(own.exchange(X25519PublicKey.from_public_bytes(keys[peer].mask)), b"mask")
            mask = stream(agreed, len(total))
            total = total + mask if number < peer else total - mask
    return np.asarray(total, np.uint64)


def stream(seed: bytes, count: int) -> Words:
    """(count,) words of the key stream of ChaCha20; a seed is used once."""
    encryptor = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * count)), np.uint64)


def derived(secret: bytes, purpose: bytes) -> bytes:
    """A key of 32 bytes."""
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"adrec " + purpose).derive(secret)


def split_secret(secret: bytes, numbers: Sequence[int], threshold: int) -> dict[int, bytes]:
    """Shares of 32 bytes, of which any `threshold` give them back and fewer say nothing (Shamir 1979). Numbers from 0."""
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(_PRIME) for _ in range(threshold - 1))]
    shares = {}
    for number in numbers:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * (number + 1) + coefficient) % _PRIME
        shares[number] = value.to_bytes(_SHARE_BYTES, "big")
    return shares


def joined_secret(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret of `threshold` shares or more, by Lagrange's polynomial at 0. Raises ValueError for shares of several."""
    chosen = dict(sorted(shares.items())[:threshold])
    total = 0
    for number, share in chosen.items():
        above, below = 1, 1
        for other in chosen:
            if other != number:
                above = above * (other + 1) % _PRIME
                below = below * (other - number) % _PRIME
        total = (total + int.from_bytes(share, "big") * above * pow(below, -1, _PRIME)) % _PRIME
    if total >= 2 ** (8 * _SECRET_BYTES):
        raise ValueError("the shares belong to different secrets")
    return total.to_bytes(_SECRET_BYTES, "big")
