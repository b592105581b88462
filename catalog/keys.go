package catalog

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	// MaxKeys is the greatest number of keys in a file.
	MaxKeys = 100

	keyBytes     = 32 // AES-256
	maxKeyFile   = MaxKeys * 1024
	sealedFormat = "v1."
	keyIDBytes   = 8
)

// ErrSealed: a secret cannot be opened, because its key is none of those that
// there are, or because it was sealed for another place or was changed.
var ErrSealed error = &sentinel{"the secret cannot be opened: its key is not in the key file, or it was sealed for another binding, or is damaged", nil}

// Keys seal the secrets of Workers for their rest in the database and in records,
// and open them where they are used: AES-256-GCM, each bound to the account, the
// Worker and the binding that it was sealed for. The first key seals, all open. So
// a key is changed by a new one in front of it, which later seals all that is
// written. All methods may be called at once.
type Keys struct {
	keys []sealingKey
}

type sealingKey struct {
	id      [keyIDBytes]byte // the beginning of its SHA-256, to know it by
	aead    cipher.AEAD
	signing [sha256.Size]byte // made of it, for Sign
}

// ReadKeys reads a file of keys: one in each line, 64 hexadecimal digits; empty
// lines, and those that begin with #, are ignored. A file that others than its
// owner may read is refused.
func ReadKeys(path string) (*Keys, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("keys of secrets: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("keys of secrets: %w", err)
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("keys of secrets: %s is no file", path)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("keys of secrets: others than its owner may use %s (mode %04o): chmod 600 it, and if others may have read it, replace the key",
			path, info.Mode().Perm())
	case info.Size() > maxKeyFile:
		return nil, fmt.Errorf("keys of secrets: %s has %d bytes: that is no file of keys", path, info.Size())
	}
	k, err := parseKeys(bufio.NewScanner(f))
	if err != nil {
		return nil, fmt.Errorf("keys of secrets: %s: %w", path, err)
	}
	return k, nil
}

// parseKeys never repeats a line in its errors: it may be a key.
func parseKeys(lines *bufio.Scanner) (*Keys, error) {
	k := &Keys{}
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		key, err := hex.DecodeString(line)
		if err != nil || len(key) != keyBytes {
			return nil, fmt.Errorf("line %d: want a key of %d hexadecimal digits", number, 2*keyBytes)
		}
		if len(k.keys) == MaxKeys {
			return nil, fmt.Errorf("line %d: more than %d keys", number, MaxKeys)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(key)
		k.keys = append(k.keys, sealingKey{[keyIDBytes]byte(sum[:keyIDBytes]), aead, [sha256.Size]byte(mac(key, []byte("nearkey: signatures")))})
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(k.keys) == 0 {
		return nil, errors.New("there is no key in it")
	}
	return k, nil
}

// CreateKeys reads a file of keys as ReadKeys does. If there is none it makes one,
// readable by its owner alone, with a new key; of several processes that do so at
// once one makes it. A crash leaves the file whole, or none.
func CreateKeys(path string) (*Keys, error) {
	k, err := ReadKeys(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if err := createKeyFile(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make a key of secrets: %w", err)
	}
	return ReadKeys(path)
}

func createKeyFile(path string) (err error) {
	var key [keyBytes]byte
	rand.Read(key[:]) // never fails
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".new-*") // of mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = fmt.Fprintf(f, "%x\n", key)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // never over a file that exists
		return err
	}
	return syncDir(dir)
}

// place is what a secret is bound to. The lengths in it keep any two places apart.
func place(accountID, worker, binding string) []byte {
	var b []byte
	for _, s := range []string{accountID, worker, binding} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return b
}

// Seal encrypts a secret for a binding. The answer is text, another each time.
func (k *Keys) Seal(accountID, worker, binding, text string) (string, error) {
	key := k.keys[0]
	sealed := key.aead.Seal(bytes.Clone(key.id[:]), nil, []byte(text), place(accountID, worker, binding))
	return sealedFormat + base64.RawStdEncoding.EncodeToString(sealed), nil
}

// Open returns the secret that Seal sealed for this binding, or ErrSealed.
func (k *Keys) Open(accountID, worker, binding, sealed string) (string, error) {
	text, ok := strings.CutPrefix(sealed, sealedFormat)
	data, err := base64.RawStdEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(data) < keyIDBytes {
		return "", fmt.Errorf("binding %q: %w", binding, ErrSealed)
	}
	for _, key := range k.keys {
		if !bytes.Equal(key.id[:], data[:keyIDBytes]) {
			continue
		}
		if open, err := key.aead.Open(nil, nil, data[keyIDBytes:], place(accountID, worker, binding)); err == nil {
			return string(open), nil
		}
	}
	return "", fmt.Errorf("binding %q: %w", binding, ErrSealed)
}
