package rest

import "github.com/nearkey/nearkey/kv"

// What bulk requests have in their items. A field of the wrong type is refused.

// maxKeyText is what is read of a key before it is refused as too long; its real
// length is then not known.
const maxKeyText = 64 << 10

// key reads a key. It is checked as soon as it is read, so that a request with a
// bad one ends there.
func (s *scanner) key() (string, error) {
	if err := s.is('"', "A key must be a string"); err != nil {
		return "", err
	}
	text, err := s.string(maxKeyText)
	if err == errLong {
		return "", kv.CheckKey(string(make([]byte, maxKeyText+1)))
	}
	if err != nil {
		return "", err
	}
	key := string(text)
	return key, kv.CheckKey(key)
}

// value reads a string of at most most bytes, for the caller to keep.
func (s *scanner) value(most int) ([]byte, error) {
	if err := s.is('"', "A value must be a string"); err != nil {
		return nil, err
	}
	text, err := s.string(most)
	if err != nil {
		return nil, err
	}
	if err := s.hold.use(int64(len(text))); err != nil {
		return nil, err
	}
	return append(make([]byte, 0, len(text)), text...), nil
}

// is checks that the next value begins with b.
func (s *scanner) is(b byte, otherwise string) error {
	got, err := s.peek()
	if err == nil && got != b {
		return invalid("%s", otherwise)
	}
	return err
}

// bool reads true or false; null is false.
func (s *scanner) bool() (bool, error) {
	text, err := s.text(numberBytes)
	if err != nil {
		return false, err
	}
	switch string(text) {
	case "true":
		return true, nil
	case "false", "null":
		return false, nil
	}
	return false, invalid("A field that must be true or false is neither")
}

const notExpiration = "An expiration must be a number"

// number64 reads a number, as such or in a string, and returns its text; null is
// none. What it may be is for the rules to say.
func (s *scanner) number64(otherwise string) (string, error) {
	b, err := s.peek()
	if err != nil {
		return "", err
	}
	if b == '"' {
		text, err := s.string(numberBytes)
		return string(text), err
	}
	text, err := s.text(numberBytes)
	if err != nil || string(text) == "null" {
		return "", err
	}
	if b != '-' && (b < '0' || b > '9') {
		return "", invalid("%s", otherwise)
	}
	return string(text), nil
}

// isJSON reads the type of a bulk get: "json", or "text", which is the default.
func (s *scanner) isJSON() (bool, error) {
	text, err := s.text(numberBytes)
	if err != nil {
		return false, err
	}
	switch string(text) {
	case `"json"`:
		return true, nil
	case `"text"`, "null":
		return false, nil
	}
	return false, invalid("The type must be 'text' or 'json'")
}

// metadata reads metadata, which may be any JSON.
func (s *scanner) metadata(limits kv.Limits) ([]byte, error) {
	text, err := s.text(metadataTextBytes)
	if err == errLong {
		return nil, &kv.RuleError{Rule: kv.RuleMetadataBytes, Text: "Metadata is longer than any limit allows."}
	}
	if err != nil {
		return nil, err
	}
	return limits.CheckMetadata(text)
}
