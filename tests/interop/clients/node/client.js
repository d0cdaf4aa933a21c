// Drives the Workload API through @grpc/grpc-js and this repository's own
// workload.proto (WORKLOAD_PROTO names it), and prints one JSON object a line.
// The sub-commands are described in ../README.md.
import { X509Certificate, createPrivateKey } from "node:crypto";
import process from "node:process";
import tls from "node:tls";
import { parseArgs } from "node:util";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const emit = (fields) => process.stdout.write(`${JSON.stringify(fields)}\n`);

function connect() {
  const definition = protoLoader.loadSync(process.env.WORKLOAD_PROTO, {
    keepCase: true,
    includeDirs: (process.env.WORKLOAD_PROTO_INCLUDE ?? "").split(":").filter(Boolean),
  });
  const { SpiffeWorkloadAPI } = grpc.loadPackageDefinition(definition);
  // grpc-js takes unix:/path or unix:///path as they stand.
  return new SpiffeWorkloadAPI(
    process.env.SPIFFE_ENDPOINT_SOCKET,
    grpc.credentials.createInsecure(),
  );
}

function metadata() {
  const headers = new grpc.Metadata();
  headers.set("workload.spiffe.io", "true");
  return headers;
}

const deadline = (seconds) => ({ deadline: Date.now() + seconds * 1000 });

function unary(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, metadata(), deadline(20), (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });
}

function first(client, method) {
  return new Promise((resolve, reject) => {
    const stream = client[method]({}, metadata(), deadline(20));
    stream.once("data", (answer) => {
      resolve(answer);
      stream.cancel();
    });
    stream.on("error", reject);
    stream.on("end", () => reject(new Error("the stream ended before its first message")));
  });
}

// Splits concatenated DER certificates.
function certificates(der) {
  const list = [];
  let rest = der;
  while (rest.length > 0) {
    let length = rest[1];
    let header = 2;
    if (length & 0x80) {
      header += length & 0x7f;
      length = rest.readUIntBE(2, length & 0x7f);
    }
    list.push(new X509Certificate(rest.subarray(0, header + length)));
    rest = rest.subarray(header + length);
  }
  return list;
}

const trustDomain = (id) => new URL(id).host;

const uri = (certificate) =>
  certificate.subjectAltName
    ?.split(", ")
    .find((name) => name.startsWith("URI:"))
    ?.slice(4);

function describe(response) {
  const bundles = {};
  const svids = response.svids.map((svid) => {
    const chain = certificates(svid.x509_svid);
    const authorities = certificates(svid.bundle);
    const last = chain[chain.length - 1];
    if (!authorities.some((root) => last.checkIssued(root) && last.verify(root.publicKey))) {
      throw new Error("the SVID's chain does not end at its own bundle");
    }
    if (!chain[0].checkPrivateKey(privateKey(svid))) {
      throw new Error("the private key is not the certificate's");
    }
    if (uri(chain[0]) !== svid.spiffe_id) {
      throw new Error(`the certificate says ${uri(chain[0])}, the message ${svid.spiffe_id}`);
    }
    bundles[trustDomain(svid.spiffe_id)] = authorities.length;
    return {
      id: svid.spiffe_id,
      serial: BigInt(`0x${chain[0].serialNumber}`).toString(),
      not_before: Date.parse(chain[0].validFrom) / 1000,
      not_after: Date.parse(chain[0].validTo) / 1000,
      chain: chain.length,
      hint: svid.hint,
    };
  });
  return { svids, bundles };
}

const privateKey = (svid) =>
  createPrivateKey({ key: svid.x509_svid_key, format: "der", type: "pkcs8" });

async function fetchJwt(client, { audience }) {
  const answer = await unary(client, "FetchJWTSVID", { audience: [audience] });
  const { spiffe_id, svid, hint } = answer.svids[0];
  const claims = JSON.parse(Buffer.from(svid.split(".")[1], "base64url"));
  emit({ id: spiffe_id, token: svid, audience: [claims.aud].flat(), expiry: claims.exp, hint });
}

async function validate(client, { audience, token }) {
  const answer = await unary(client, "ValidateJWTSVID", { audience, svid: token });
  emit({ id: answer.spiffe_id, audience: [audience] });
}

async function bundles(client) {
  const x509 = {};
  const jwt = {};
  const x509Answer = await first(client, "FetchX509Bundles");
  for (const [id, der] of Object.entries(x509Answer.bundles)) {
    x509[trustDomain(id)] = certificates(der).length;
  }
  const jwtAnswer = await first(client, "FetchJWTBundles");
  for (const [id, jwks] of Object.entries(jwtAnswer.bundles)) {
    jwt[trustDomain(id)] = JSON.parse(jwks).keys.length;
  }
  emit({ x509, jwt });
}

function watch(client, { count, timeout }) {
  return new Promise((resolve, reject) => {
    let left = Number(count);
    const stream = client.FetchX509SVID({}, metadata(), deadline(Number(timeout)));
    stream.on("data", (response) => {
      try {
        emit(describe(response));
      } catch (error) {
        reject(error);
      }
      left -= 1;
      if (left === 0) {
        resolve();
        stream.cancel();
      }
    });
    stream.on("error", reject);
    stream.on("end", () => reject(new Error(`the stream ended with ${left} updates to go`)));
  });
}

async function tlsOptions(client) {
  const svid = (await first(client, "FetchX509SVID")).svids[0];
  return {
    own: svid.spiffe_id,
    options: {
      cert: certificates(svid.x509_svid).map(String).join(""),
      key: privateKey(svid).export({ format: "pem", type: "pkcs8" }),
      ca: certificates(svid.bundle).map(String).join(""),
    },
  };
}

const peerId = (socket) => uri(socket.getPeerX509Certificate());

function split(address) {
  const at = address.lastIndexOf(":");
  return { host: address.slice(0, at), port: Number(address.slice(at + 1)) };
}

async function serve(client, { address, peer }) {
  const { own, options } = await tlsOptions(client);
  const server = tls.createServer(
    { ...options, requestCert: true, rejectUnauthorized: true },
    (socket) => {
      socket.on("error", () => {});
      if (peerId(socket) !== peer) {
        emit({ refused: `unexpected peer ${peerId(socket)}` });
        socket.destroy();
        return;
      }
      emit({ peer: peerId(socket) });
      socket.end(`hello from ${own}\n`);
    },
  );
  server.on("tlsClientError", (error) => emit({ refused: error.message }));
  server.listen(split(address), () => {
    const bound = server.address();
    emit({ listening: `${bound.address}:${bound.port}` });
  });
  await new Promise((resolve) => process.stdin.resume().on("end", resolve));
}

async function dial(client, { address, peer }) {
  const { options } = await tlsOptions(client);
  await new Promise((resolve, reject) => {
    const socket = tls.connect({
      ...options,
      ...split(address),
      // The name is the SPIFFE ID's, not the host's.
      checkServerIdentity: (_host, { raw }) => {
        const id = uri(new X509Certificate(raw));
        return id === peer ? undefined : new Error(`unexpected peer ${id}`);
      },
    });
    let message = "";
    let from;
    socket.on("secureConnect", () => {
      from = peerId(socket);
    });
    socket.on("data", (chunk) => {
      message += chunk;
    });
    socket.on("error", reject);
    socket.on("close", () => {
      if (message.endsWith("\n")) {
        emit({ peer: from, message });
        resolve();
      } else {
        reject(new Error("the peer closed the connection"));
      }
    });
  });
}

const commands = {
  x509: async (client) => emit(describe(await first(client, "FetchX509SVID"))),
  jwt: fetchJwt,
  validate,
  bundles,
  watch,
  serve,
  dial,
};

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    audience: { type: "string" },
    token: { type: "string" },
    count: { type: "string", default: "1" },
    timeout: { type: "string", default: "30" },
    address: { type: "string" },
    peer: { type: "string" },
  },
});

try {
  await commands[positionals[0]](connect(), values);
  process.exit(0);
} catch (error) {
  emit({ error: error.message });
  process.exit(1);
}
