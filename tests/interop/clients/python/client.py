"""Drives the Workload API through py-spiffe and prints one JSON object a line.

The sub-commands are described in ../README.md.
"""

import argparse
import json
import sys
import threading

from OpenSSL import SSL
from cryptography import x509 as certificates
from spiffe import JwtSvid, SpiffeId, WorkloadApiClient, X509Source
from spiffetls import dial, listen
from spiffetls.listen import ListenOptions
from spiffetls.mode import ClientTlsMode, ServerTlsMode
from spiffetls.tlsconfig.authorize import authorize_id


def emit(**fields):
    print(json.dumps(fields), flush=True)


def describe(context):
    svids = []
    for svid in context.x509_svids:
        bundle = context.x509_bundle_set.get_bundle_for_trust_domain(
            svid.spiffe_id.trust_domain
        )
        issuers = {authority.subject for authority in bundle.x509_authorities}
        if svid.cert_chain[-1].issuer not in issuers:
            raise ValueError("the SVID's chain does not end at its own bundle")
        svids.append(
            {
                "id": str(svid.spiffe_id),
                "serial": str(svid.leaf.serial_number),
                "not_before": int(svid.leaf.not_valid_before_utc.timestamp()),
                "not_after": int(svid.leaf.not_valid_after_utc.timestamp()),
                "chain": len(svid.cert_chain),
            }
        )
    return {"svids": svids, "bundles": counts(context.x509_bundle_set.bundles, "x509_authorities")}


def counts(bundles, authorities):
    return {bundle.trust_domain.name: len(getattr(bundle, authorities)) for bundle in bundles}


def fetch_x509(client, _args):
    emit(**describe(client.fetch_x509_context(timeout=20)))


def fetch_jwt(client, args):
    svid = client.fetch_jwt_svid({args.audience}, timeout=20)
    bundle = client.fetch_jwt_bundles(timeout=20).get_bundle_for_trust_domain(
        svid.spiffe_id.trust_domain
    )
    JwtSvid.parse_and_validate(svid.token, bundle, {args.audience})
    emit(
        id=str(svid.spiffe_id), token=svid.token, audience=sorted(svid.audience), expiry=svid.expiry
    )


def validate(client, args):
    svid = client.validate_jwt_svid(args.token, args.audience, timeout=20)
    emit(id=str(svid.spiffe_id), audience=sorted(svid.audience))


def bundles(client, _args):
    emit(
        x509=counts(client.fetch_x509_bundles(timeout=20).bundles, "x509_authorities"),
        jwt=counts(client.fetch_jwt_bundles(timeout=20).bundles, "jwt_authorities"),
    )


def watch(client, args):
    left = args.count
    failure = None
    done = threading.Event()

    def update(context):
        nonlocal left, failure
        try:
            emit(**describe(context))
        except Exception as error:  # reported by the main thread
            failure = error
            done.set()
        left -= 1
        if left == 0:
            done.set()

    def problem(error):
        nonlocal failure
        failure = error
        done.set()

    cancel = client.stream_x509_contexts(update, problem)
    if not done.wait(args.timeout):
        raise TimeoutError(f"timed out with {left} updates to go")
    cancel.cancel()
    if failure is not None:
        raise failure


def peer_id(connection):
    certificate = connection.get_peer_certificate().to_cryptography()
    names = certificate.extensions.get_extension_for_class(certificates.SubjectAlternativeName)
    return names.value.get_values_for_type(certificates.UniformResourceIdentifier)[0]


def serve(_client, args):
    with X509Source(timeout_in_seconds=20) as source:
        options = ListenOptions(
            tls_mode=ServerTlsMode.MTLS, authorize_fn=authorize_id(SpiffeId(args.peer))
        )
        listener = listen(args.address, source, options)
        host, port = listener.getsockname()
        emit(listening=f"{host}:{port}")
        threading.Thread(target=accept, args=(listener, source), daemon=True).start()
        sys.stdin.read()


def accept(listener, source):
    while True:
        connection, _ = listener.accept()
        try:
            connection.do_handshake()
            emit(peer=peer_id(connection))
            connection.sendall(f"hello from {source.svid.spiffe_id}\n".encode())
            connection.shutdown()
        except SSL.Error as error:
            emit(refused=repr(error))
        finally:
            connection.close()


def dial_peer(_client, args):
    with X509Source(timeout_in_seconds=20) as source:
        connection = dial(
            args.address, source, ClientTlsMode.TLS, authorize_id(SpiffeId(args.peer))
        )
        message = b""
        while not message.endswith(b"\n"):
            message += connection.recv(1024)
        emit(peer=peer_id(connection), message=message.decode())
        connection.close()


COMMANDS = {
    "x509": fetch_x509,
    "jwt": fetch_jwt,
    "validate": validate,
    "bundles": bundles,
    "watch": watch,
    "serve": serve,
    "dial": dial_peer,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument("--audience")
    parser.add_argument("--token")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--timeout", type=int, default=30)
    parser.add_argument("--address")
    parser.add_argument("--peer")
    args = parser.parse_args()
    try:
        with WorkloadApiClient() as client:
            COMMANDS[args.command](client, args)
    except Exception as error:  # every failure becomes a line that the test reads
        emit(error=f"{type(error).__name__}: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
