package plastron;

import com.google.gson.Gson;
import io.spiffe.bundle.x509bundle.X509BundleSet;
import io.spiffe.provider.SpiffeSslContextFactory;
import io.spiffe.provider.SpiffeSslContextFactory.SslContextOptions;
import io.spiffe.spiffeid.SpiffeId;
import io.spiffe.spiffeid.TrustDomain;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.svid.x509svid.X509SvidValidator;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.DefaultX509Source;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.InetAddress;
import java.nio.charset.StandardCharsets;
import java.security.cert.Certificate;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;

/**
 * Drives the Workload API through java-spiffe and prints one JSON object a line. The sub-commands
 * are described in ../README.md.
 */
public final class Main {
  private static final Gson GSON = new Gson();

  private Main() {}

  public static void main(String[] args) {
    try {
      run(args[0], flags(args));
      System.exit(0);
    } catch (Throwable error) {
      emit(Map.of("error", chain(error)));
      System.exit(1);
    }
  }

  private static void run(String command, Map<String, String> flags) throws Exception {
    switch (command) {
      case "x509" -> fetchX509();
      case "jwt" -> fetchJwt(flags.get("audience"));
      case "validate" -> validate(flags.get("token"), flags.get("audience"));
      case "bundles" -> bundles();
      case "watch" ->
          watch(
              Integer.parseInt(flags.getOrDefault("count", "1")),
              Integer.parseInt(flags.getOrDefault("timeout", "30")));
      case "serve" -> serve(flags.get("address"), flags.get("peer"));
      case "dial" -> dial(flags.get("address"), flags.get("peer"));
      default -> throw new IllegalArgumentException("unknown command " + command);
    }
  }

  private static Map<String, String> flags(String[] args) {
    Map<String, String> flags = new HashMap<>();
    for (int i = 1; i + 1 < args.length; i += 2) {
      flags.put(args[i].replaceFirst("^-+", ""), args[i + 1]);
    }
    return flags;
  }

  private static synchronized void emit(Map<String, ?> object) {
    System.out.println(GSON.toJson(object));
    System.out.flush();
  }

  private static String chain(Throwable error) {
    StringBuilder text = new StringBuilder();
    for (Throwable cause = error; cause != null; cause = cause.getCause()) {
      text.append(text.isEmpty() ? "" : ": ").append(cause.getMessage());
    }
    return text.toString();
  }

  private static void fetchX509() throws Exception {
    try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
      emit(describe(client.fetchX509Context()));
    }
  }

  private static Map<String, Object> describe(X509Context context) throws Exception {
    List<Map<String, Object>> svids = new ArrayList<>();
    for (X509Svid svid : context.getX509Svids()) {
      X509SvidValidator.verifyChain(svid.getChain(), context.getX509BundleSet());
      X509Certificate leaf = svid.getLeaf();
      Map<String, Object> fields = new LinkedHashMap<>();
      fields.put("id", svid.getSpiffeId().toString());
      fields.put("serial", leaf.getSerialNumber().toString());
      fields.put("not_before", leaf.getNotBefore().getTime() / 1000);
      fields.put("not_after", leaf.getNotAfter().getTime() / 1000);
      fields.put("chain", svid.getChain().size());
      fields.put("hint", svid.getHint() == null ? "" : svid.getHint());
      svids.add(fields);
    }
    return Map.of("svids", svids, "bundles", counts(context.getX509BundleSet()));
  }

  private static Map<String, Integer> counts(X509BundleSet set) {
    Map<String, Integer> counts = new HashMap<>();
    set.getBundles().forEach((td, bundle) -> counts.put(name(td), bundle.getX509Authorities().size()));
    return counts;
  }

  private static String name(TrustDomain trustDomain) {
    return trustDomain.getName();
  }

  private static void fetchJwt(String audience) throws Exception {
    try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
      JwtSvid svid = client.fetchJwtSvid(audience);
      JwtSvid.parseAndValidate(svid.getToken(), client.fetchJwtBundles(), Set.of(audience));
      Map<String, Object> fields = new LinkedHashMap<>();
      fields.put("id", svid.getSpiffeId().toString());
      fields.put("token", svid.getToken());
      fields.put("audience", svid.getAudience());
      fields.put("expiry", svid.getExpiry().getTime() / 1000);
      fields.put("hint", svid.getHint() == null ? "" : svid.getHint());
      emit(fields);
    }
  }

  private static void validate(String token, String audience) throws Exception {
    try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
      JwtSvid svid = client.validateJwtSvid(token, audience);
      emit(Map.of("id", svid.getSpiffeId().toString(), "audience", svid.getAudience()));
    }
  }

  private static void bundles() throws Exception {
    try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
      Map<String, Integer> jwt = new HashMap<>();
      client
          .fetchJwtBundles()
          .getBundles()
          .forEach((td, bundle) -> jwt.put(name(td), bundle.getJwtAuthorities().size()));
      emit(Map.of("x509", counts(client.fetchX509Bundles()), "jwt", jwt));
    }
  }

  private static void watch(int count, int timeout) throws Exception {
    CountDownLatch left = new CountDownLatch(count);
    AtomicReference<Throwable> failure = new AtomicReference<>();
    try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
      client.watchX509Context(
          new Watcher<X509Context>() {
            @Override
            public void onUpdate(X509Context update) {
              try {
                emit(describe(update));
              } catch (Exception error) {
                failure.set(error);
              }
              left.countDown();
            }

            @Override
            public void onError(Throwable error) {
              System.err.println("watch: " + chain(error));
            }
          });
      if (!left.await(timeout, TimeUnit.SECONDS)) {
        throw new IllegalStateException("timed out with " + left.getCount() + " updates to go");
      }
    }
    if (failure.get() != null) {
      throw new IllegalStateException(failure.get());
    }
  }

  private static SSLContext context(DefaultX509Source source, String peer) throws Exception {
    SpiffeId id = SpiffeId.parse(peer);
    return SpiffeSslContextFactory.getSslContext(
        SslContextOptions.builder()
            .x509Source(source)
            .acceptedSpiffeIdsSupplier(() -> Set.of(id))
            .build());
  }

  private static String peerId(SSLSocket socket) throws Exception {
    Certificate[] certificates = socket.getSession().getPeerCertificates();
    for (List<?> name : ((X509Certificate) certificates[0]).getSubjectAlternativeNames()) {
      if (Integer.valueOf(6).equals(name.get(0))) {
        return (String) name.get(1);
      }
    }
    throw new IllegalStateException("the peer's certificate has no URI");
  }

  /** Accepts connections until standard input closes. */
  private static void serve(String address, String peer) throws Exception {
    String[] parts = address.split(":");
    try (DefaultX509Source source = DefaultX509Source.newSource();
        SSLServerSocket listener =
            (SSLServerSocket)
                context(source, peer)
                    .getServerSocketFactory()
                    .createServerSocket(Integer.parseInt(parts[1]), 16, InetAddress.getByName(parts[0]))) {
      listener.setNeedClientAuth(true);
      emit(Map.of("listening", parts[0] + ":" + listener.getLocalPort()));
      Thread accepting = new Thread(() -> accept(listener, source));
      accepting.setDaemon(true);
      accepting.start();
      while (System.in.read() >= 0) {
        // Wait for the end of standard input.
      }
    }
  }

  private static void accept(SSLServerSocket listener, DefaultX509Source source) {
    while (!listener.isClosed()) {
      try (SSLSocket socket = (SSLSocket) listener.accept()) {
        socket.setSoTimeout(10_000);
        socket.startHandshake();
        emit(Map.of("peer", peerId(socket)));
        OutputStream out = socket.getOutputStream();
        out.write(
            ("hello from " + source.getX509Svid().getSpiffeId() + "\n").getBytes(StandardCharsets.UTF_8));
        out.flush();
      } catch (Exception error) {
        emit(Map.of("refused", chain(error)));
      }
    }
  }

  private static void dial(String address, String peer) throws Exception {
    String[] parts = address.split(":");
    try (DefaultX509Source source = DefaultX509Source.newSource();
        SSLSocket socket =
            (SSLSocket)
                context(source, peer).getSocketFactory().createSocket(parts[0], Integer.parseInt(parts[1]))) {
      socket.setSoTimeout(10_000);
      socket.startHandshake();
      BufferedReader in =
          new BufferedReader(new InputStreamReader(socket.getInputStream(), StandardCharsets.UTF_8));
      String message = in.readLine();
      if (message == null) {
        throw new IllegalStateException("the peer closed the connection");
      }
      emit(Map.of("peer", peerId(socket), "message", message + "\n"));
    }
  }
}
