package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func keyFile(t testing.TB, mode os.FileMode, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func testKey(n int) string { return fmt.Sprintf("%064x", n) }

func testKeys(t testing.TB, lines ...string) *Keys {
	t.Helper()
	k, err := ReadKeys(keyFile(t, 0o600, lines...))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSealedSecretsOpenWhereTheyBelong(t *testing.T) {
	once(t)
	k := testKeys(t, testKey(1))
	for _, text := range []string{"", "s3cret", strings.Repeat("x", 100_000), "\xff\x00é"} {
		sealed, err := k.Seal(testAccount, "w", "B", text)
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > 0 && strings.Contains(sealed, text) {
			t.Errorf("%q is sealed as %q", text, sealed)
		}
		if got, err := k.Open(testAccount, "w", "B", sealed); err != nil || got != text {
			t.Errorf("opened %q, %v; want %q", got, err, text)
		}
		if again, err := k.Seal(testAccount, "w", "B", text); err != nil || again == sealed {
			t.Errorf("sealed twice it is the same: %v", err)
		}
	}
	sealed, err := k.Seal(testAccount, "w", "B", "s3cret")
	if err != nil {
		t.Fatal(err)
	}
	for what, open := range map[string]func() (string, error){
		"another account":       func() (string, error) { return k.Open(testAccount[1:], "w", "B", sealed) },
		"another Worker":        func() (string, error) { return k.Open(testAccount, "v", "B", sealed) },
		"another binding":       func() (string, error) { return k.Open(testAccount, "w", "C", sealed) },
		"names that run over":   func() (string, error) { return k.Open(testAccount, "wB", "", sealed) },
		"another key":           func() (string, error) { return testKeys(t, testKey(2)).Open(testAccount, "w", "B", sealed) },
		"a cut text":            func() (string, error) { return k.Open(testAccount, "w", "B", sealed[:len(sealed)-4]) },
		"another format":        func() (string, error) { return k.Open(testAccount, "w", "B", "v2."+sealed[3:]) },
		"no text":               func() (string, error) { return k.Open(testAccount, "w", "B", "") },
		"a prefix":              func() (string, error) { return k.Open(testAccount, "w", "B", "v1.") },
		"plain text":            func() (string, error) { return k.Open(testAccount, "w", "B", "s3cret") },
		"another last bit, set": func() (string, error) { return k.Open(testAccount, "w", "B", sealed+"A") },
	} {
		text, err := open()
		wantError(t, err, ErrSealed)
		if text != "" || err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %q, %v", what, text, err)
		}
	}
	for i := len(sealedFormat); i < len(sealed); i += 7 {
		b := []byte(sealed)
		b[i] = map[bool]byte{true: 'B', false: 'A'}[b[i] == 'A']
		if _, err := k.Open(testAccount, "w", "B", string(b)); !errors.Is(err, ErrSealed) {
			t.Errorf("with another character at %d: %v", i, err)
		}
	}
}

func TestKeysAreReplaced(t *testing.T) {
	once(t)
	old, both, later := testKeys(t, testKey(1)), testKeys(t, "# new", testKey(2), "", "  "+testKey(1)+"\r"), testKeys(t, testKey(2))
	before, err := old.Seal(testAccount, "w", "B", "1")
	if err != nil {
		t.Fatal(err)
	}
	after, err := both.Seal(testAccount, "w", "B", "2")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		keys   *Keys
		sealed string
		want   string
	}{{both, before, "1"}, {both, after, "2"}, {later, after, "2"}} {
		if got, err := c.keys.Open(testAccount, "w", "B", c.sealed); err != nil || got != c.want {
			t.Errorf("%q, %v; want %q", got, err, c.want)
		}
	}
	_, err = old.Open(testAccount, "w", "B", after)
	wantError(t, err, ErrSealed)
	_, err = later.Open(testAccount, "w", "B", before)
	wantError(t, err, ErrSealed)
}

func TestKeyFilesThatAreRefused(t *testing.T) {
	once(t)
	key := testKey(0xbeef)
	many := make([]string, MaxKeys)
	for i := range many {
		many[i] = testKey(i)
	}
	if k := testKeys(t, many...); len(k.keys) != MaxKeys {
		t.Errorf("%d keys", len(k.keys))
	}
	for what, path := range map[string]string{
		"others may read it":  keyFile(t, 0o640, key),
		"the world may":       keyFile(t, 0o604, key),
		"others may write it": keyFile(t, 0o620, key),
		"empty":               keyFile(t, 0o600),
		"a comment":           keyFile(t, 0o600, "# "+key),
		"short":               keyFile(t, 0o600, key[1:]),
		"long":                keyFile(t, 0o600, key+"00"),
		"no digits":           keyFile(t, 0o600, "g"+key[1:]),
		"one good, one bad":   keyFile(t, 0o600, key, "bad"+key),
		"one too many":        keyFile(t, 0o600, append(many, key)...),
		"large":               keyFile(t, 0o600, key, strings.Repeat("#", maxKeyFile)),
		"a folder":            t.TempDir(),
		"none":                filepath.Join(t.TempDir(), "none"),
	} {
		k, err := ReadKeys(path)
		if err == nil || k != nil {
			t.Errorf("%s: read", what)
			continue
		}
		if strings.Contains(err.Error(), "beef") {
			t.Errorf("%s: the key is in the error: %v", what, err)
		}
	}
}

// Of many that start at once all have the same key.
func TestKeysAreMadeOnce(t *testing.T) {
	once(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "keys")
	keys := make([]*Keys, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			var err error
			if keys[i], err = CreateKeys(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	sealed, err := keys[0].Seal(testAccount, "w", "B", "x")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if _, err := k.Open(testAccount, "w", "B", sealed); err != nil {
			t.Error(err)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Errorf("%v, %v: something is left", files, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CreateKeys(path); err != nil {
		t.Error(err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was changed: %v", err)
	}
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateKeys(path); err == nil {
		t.Error("a damaged file was read, or replaced")
	}
}
