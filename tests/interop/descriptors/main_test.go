package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/reflect/protoregistry"
)

const committed = "../../../crates/proto/src/gen/descriptors.bin"

func compared(t *testing.T, path string) comparison {
	t.Helper()
	ours, err := load(path)
	if err != nil {
		t.Fatal(err)
	}
	var c comparison
	compareAll(&c, ours, protoregistry.GlobalFiles)
	return c
}

func TestOurInterfacesAreThePublicOnes(t *testing.T) {
	c := compared(t, committed)
	for _, difference := range c.differences {
		t.Error(difference)
	}
	if c.methods == 0 {
		t.Error("nothing was compared")
	}
	t.Logf("%d files, %d messages, %d methods equal", c.files, c.messages, c.methods)
}

// The change of one byte in a name must be seen in every kind of thing that has a name.
func TestADifferenceIsSeen(t *testing.T) {
	set, err := os.ReadFile(committed)
	if err != nil {
		t.Fatal(err)
	}
	for ours, changed := range map[string]string{
		"x509_svid_ttl":  "x509_svid_tt1",
		"BanAgent\x12":   "BinAgent\x12",
		"MATCH_SUPERSET": "MATCH_SUPERSIT",
		"ConnInfo":       "ConnInfa",
		"inline_bytes":   "inline_bytez",
	} {
		path := filepath.Join(t.TempDir(), "set.bin")
		if err := os.WriteFile(path, bytes.ReplaceAll(set, []byte(ours), []byte(changed)), 0o600); err != nil {
			t.Fatal(err)
		}
		if c := compared(t, path); len(c.differences) == 0 {
			t.Errorf("%q instead of %q was not seen", changed, ours)
		}
	}
}
