package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/kv"
)

// elements reads a JSON array element by element; one element is in memory.
type elements struct {
	dec   *json.Decoder
	limit *allowance
	hash  hash.Hash
	count int64
	begun bool
	ended bool
}

// maxElementBytes is the longest element that is read.
const maxElementBytes = client.MaxLineBytes

func newElements(r io.Reader) *elements {
	limit := &allowance{r: r}
	return &elements{dec: json.NewDecoder(limit), limit: limit, hash: sha256.New()}
}

// next returns the text of the next element, io.EOF after the array. The text is
// valid until the next call.
func (e *elements) next() (json.RawMessage, error) {
	e.limit.left = maxElementBytes + 1<<10 // and the comma and spaces after it
	if e.ended {
		return nil, io.EOF
	}
	if !e.begun {
		if t, err := e.dec.Token(); err != nil || t != json.Delim('[') {
			return nil, e.fault("want a JSON array", err)
		}
		e.begun = true
	}
	if !e.dec.More() {
		return nil, e.end()
	}
	var text json.RawMessage
	if err := e.dec.Decode(&text); err != nil {
		return nil, e.fault("cannot be read", err)
	}
	if len(text) > maxElementBytes {
		return nil, e.fault("cannot be read", errTooLarge)
	}
	if err := client.CheckText(text); err != nil {
		return nil, e.fault("not usable", err)
	}
	e.count++
	e.hash.Write(text)
	e.hash.Write([]byte{'\n'})
	return text, nil
}

// end reads the end of the array and sees to it that nothing follows.
func (e *elements) end() error {
	if _, err := e.dec.Token(); err != nil {
		return e.fault("the array has no end", err)
	}
	if _, err := e.dec.Token(); err != io.EOF {
		return e.fault("something follows the array", nil)
	}
	e.ended = true
	return io.EOF
}

func (e *elements) fault(reason string, err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the input was cut off")
	}
	text := fmt.Sprintf("element %d (before byte %d): %s", e.count+1, e.dec.InputOffset(), reason)
	if err == nil {
		return errors.New(text)
	}
	return fmt.Errorf("%s: %w", text, err)
}

var errTooLarge = fmt.Errorf("the element is larger than %d bytes", int64(maxElementBytes))

// allowance is a reader that gives so many bytes until it is given more.
type allowance struct {
	r    io.Reader
	left int64
}

func (a *allowance) Read(p []byte) (int, error) {
	if a.left <= 0 {
		return 0, errTooLarge
	}
	n, err := a.r.Read(p[:min(int64(len(p)), a.left)])
	a.left -= int64(n)
	return n, err
}

// pairReader yields the pairs of wrangler's bulk JSON.
type pairReader struct {
	elements *elements
	prefix   string
	unknown  map[string]bool // properties that were met and mean nothing
}

func newPairReader(r io.Reader, prefix string) *pairReader {
	return &pairReader{elements: newElements(r), prefix: prefix, unknown: map[string]bool{}}
}

func (r *pairReader) next() (item, error) {
	text, err := r.elements.next()
	if err != nil {
		return item{}, err
	}
	pair, err := r.pair(text)
	if err != nil {
		return item{}, fmt.Errorf("element %d (before byte %d): %w", r.elements.count, r.elements.dec.InputOffset(), err)
	}
	pair.Key = r.prefix + pair.Key
	return item{Pair: pair, where: fmt.Sprintf("element %d", r.elements.count), bytes: int64(len(pair.Value))}, nil
}

func (r *pairReader) skip(n int64) error {
	for range n {
		if _, err := r.elements.next(); err != nil {
			return err
		}
	}
	return nil
}

func (r *pairReader) place() (int64, string) {
	return r.elements.dec.InputOffset(), hex.EncodeToString(r.elements.hash.Sum(nil))
}

// wranglerPair is an element of wrangler's bulk JSON.
type wranglerPair struct {
	Key        *string         `json:"key"`
	Value      *string         `json:"value"`
	Base64     bool            `json:"base64"`
	Expiration json.Number     `json:"expiration"`
	TTL        json.Number     `json:"expiration_ttl"`
	Metadata   json.RawMessage `json:"metadata"`
}

// maxUnknown bounds how many properties without a meaning are remembered.
const maxUnknown = 20

func (r *pairReader) pair(text json.RawMessage) (client.Pair, error) {
	var p wranglerPair
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err := dec.Decode(&p)
	if err != nil && strings.Contains(err.Error(), "unknown field") {
		if len(r.unknown) < maxUnknown {
			r.unknown[strings.TrimPrefix(err.Error(), "json: unknown field ")] = true
		}
		p = wranglerPair{}
		err = json.Unmarshal(text, &p)
	}
	switch {
	case err != nil:
		return client.Pair{}, errors.New(strings.TrimPrefix(err.Error(), "json: "))
	case p.Key == nil:
		return client.Pair{}, errors.New(`there is no "key"`)
	case p.Value == nil:
		return client.Pair{}, errors.New(`there is no "value"; it must be a string`)
	}
	pair := client.Pair{Key: *p.Key, Value: []byte(*p.Value)}
	if p.Base64 {
		if pair.Value, err = base64.StdEncoding.DecodeString(*p.Value); err != nil {
			return client.Pair{}, fmt.Errorf("value: %w", err)
		}
	}
	if pair.Expiration, err = seconds(p.Expiration); err != nil {
		return client.Pair{}, fmt.Errorf("expiration: %w", err)
	}
	if pair.TTL, err = seconds(p.TTL); err != nil {
		return client.Pair{}, fmt.Errorf("expiration_ttl: %w", err)
	}
	if string(p.Metadata) != "null" {
		pair.Metadata = bytes.Clone(p.Metadata)
	}
	return pair, nil
}

// seconds reads a whole number in any way that JSON can write it; none is 0.
func seconds(n json.Number) (int64, error) {
	if n == "" {
		return 0, nil
	}
	if i, err := strconv.ParseInt(string(n), 10, 64); err == nil && i > 0 {
		return i, nil
	}
	f, err := strconv.ParseFloat(string(n), 64)
	if err != nil || f != math.Trunc(f) || f <= 0 || f > 1<<53 {
		return 0, fmt.Errorf("%s is no whole number greater than 0", n)
	}
	return int64(f), nil
}

// keyNames reads the file of a bulk get or delete: an array of strings, or of
// objects with a name, as a listing has them.
type keyNames struct{ elements *elements }

func (k keyNames) next() (string, error) {
	text, err := k.elements.next()
	if err != nil {
		return "", err
	}
	var name string
	if json.Unmarshal(text, &name) != nil {
		var object struct{ Name, Key *string }
		if err := json.Unmarshal(text, &object); err != nil {
			return "", fmt.Errorf("element %d: want a string, or an object with a name", k.elements.count)
		}
		switch {
		case object.Name != nil:
			name = *object.Name
		case object.Key != nil:
			name = *object.Key
		default:
			return "", fmt.Errorf(`element %d: there is no "name"`, k.elements.count)
		}
	}
	if err := kv.CheckKey(name); err != nil {
		return "", fmt.Errorf("element %d: %w", k.elements.count, err)
	}
	return name, nil
}
