// Command goclient drives the Workload API through go-spiffe and prints one
// JSON object a line. The sub-commands are described in ../README.md.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

type object map[string]any

func emit(o object) {
	line, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: goclient x509|jwt|validate|watch|bundles|serve|dial [flags]")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		emit(object{"error": err.Error()})
		os.Exit(1)
	}
}

func run(command string, args []string) error {
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	audience := flags.String("audience", "", "audience of the JWT-SVID")
	token := flags.String("token", "", "token to validate")
	count := flags.Int("count", 1, "updates to wait for")
	timeout := flags.Int("timeout", 30, "give up after this many seconds")
	address := flags.String("address", "127.0.0.1:0", "address to serve or dial")
	peer := flags.String("peer", "", "SPIFFE ID that the peer must have")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(*timeout)*time.Second)
	defer cancel()
	switch command {
	case "x509":
		return fetchX509(ctx)
	case "jwt":
		return fetchJWT(ctx, *audience)
	case "validate":
		return validate(ctx, *token, *audience)
	case "bundles":
		return bundles(ctx)
	case "watch":
		return watch(ctx, *count)
	case "serve":
		return serve(ctx, *address, *peer)
	case "dial":
		return dial(ctx, *address, *peer)
	}
	return fmt.Errorf("unknown command %q", command)
}

func describe(svids []*x509svid.SVID, sets []*x509bundle.Bundle) (object, error) {
	var list []object
	for _, svid := range svids {
		leaf := svid.Certificates[0]
		list = append(list, object{
			"id":         svid.ID.String(),
			"serial":     leaf.SerialNumber.String(),
			"not_before": leaf.NotBefore.Unix(),
			"not_after":  leaf.NotAfter.Unix(),
			"chain":      len(svid.Certificates),
			"hint":       svid.Hint,
			"dns":        leaf.DNSNames,
		})
	}
	authorities := object{}
	set := x509bundle.NewSet(sets...)
	for _, bundle := range sets {
		authorities[bundle.TrustDomain().Name()] = len(bundle.X509Authorities())
	}
	for _, svid := range svids {
		if _, _, err := x509svid.Verify(svid.Certificates, set); err != nil {
			return nil, fmt.Errorf("the SVID does not verify against its own bundle: %w", err)
		}
	}
	return object{"svids": list, "bundles": authorities}, nil
}

func fetchX509(ctx context.Context) error {
	x509Context, err := workloadapi.FetchX509Context(ctx)
	if err != nil {
		return err
	}
	described, err := describe(x509Context.SVIDs, x509Context.Bundles.Bundles())
	if err != nil {
		return err
	}
	emit(described)
	return nil
}

func fetchJWT(ctx context.Context, audience string) error {
	svid, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return err
	}
	set, err := workloadapi.FetchJWTBundles(ctx)
	if err != nil {
		return err
	}
	if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), set, []string{audience}); err != nil {
		return fmt.Errorf("the token does not verify against the JWT bundles: %w", err)
	}
	emit(object{
		"id": svid.ID.String(), "token": svid.Marshal(), "audience": svid.Audience,
		"expiry": svid.Expiry.Unix(), "hint": svid.Hint,
	})
	return nil
}

func validate(ctx context.Context, token, audience string) error {
	svid, err := workloadapi.ValidateJWTSVID(ctx, token, audience)
	if err != nil {
		return err
	}
	emit(object{"id": svid.ID.String(), "audience": svid.Audience, "claims": svid.Claims})
	return nil
}

func bundles(ctx context.Context) error {
	x509Set, err := workloadapi.FetchX509Bundles(ctx)
	if err != nil {
		return err
	}
	jwtSet, err := workloadapi.FetchJWTBundles(ctx)
	if err != nil {
		return err
	}
	x509Counts, jwtCounts := object{}, object{}
	for _, bundle := range x509Set.Bundles() {
		x509Counts[bundle.TrustDomain().Name()] = len(bundle.X509Authorities())
	}
	for _, bundle := range jwtSet.Bundles() {
		jwtCounts[bundle.TrustDomain().Name()] = len(bundle.JWTAuthorities())
	}
	emit(object{"x509": x509Counts, "jwt": jwtCounts})
	return nil
}

// watcher reports each update and counts them down.
type watcher struct {
	left int
	done chan error
}

func (w *watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	described, err := describe(update.SVIDs, update.Bundles.Bundles())
	if err != nil {
		w.done <- err
		return
	}
	emit(described)
	if w.left--; w.left == 0 {
		w.done <- nil
	}
}

func (w *watcher) OnX509ContextWatchError(err error) {
	if !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "watch:", err)
	}
}

func watch(ctx context.Context, count int) error {
	w := &watcher{left: count, done: make(chan error, count+1)}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		if err := workloadapi.WatchX509Context(inner, w); err != nil && inner.Err() == nil {
			w.done <- err
		}
	}()
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("timed out with %d updates to go", w.left)
	}
}

// serve accepts connections until standard input closes. It greets each peer
// that proves the expected SPIFFE ID.
func serve(ctx context.Context, address, peer string) error {
	id, err := spiffeid.FromString(peer)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	listener, err := tls.Listen("tcp", address, tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(id)))
	if err != nil {
		return err
	}
	defer listener.Close()
	emit(object{"listening": listener.Addr().String()})
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go greet(conn, source)
		}
	}()
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func greet(conn net.Conn, source *workloadapi.X509Source) {
	defer conn.Close()
	secure := conn.(*tls.Conn)
	if err := secure.Handshake(); err != nil {
		emit(object{"refused": err.Error()})
		return
	}
	svid, err := source.GetX509SVID()
	if err != nil {
		emit(object{"refused": err.Error()})
		return
	}
	from, err := x509svid.IDFromCert(secure.ConnectionState().PeerCertificates[0])
	if err != nil {
		emit(object{"refused": err.Error()})
		return
	}
	emit(object{"peer": from.String()})
	fmt.Fprintf(conn, "hello from %s\n", svid.ID)
}

func dial(ctx context.Context, address, peer string) error {
	id, err := spiffeid.FromString(peer)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	conn, err := tls.Dial("tcp", address, tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id)))
	if err != nil {
		return err
	}
	defer conn.Close()
	message, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	from, err := x509svid.IDFromCert(conn.ConnectionState().PeerCertificates[0])
	if err != nil {
		return err
	}
	emit(object{"peer": from.String(), "message": message})
	return nil
}
