package client_test

import (
	"bytes"
	"encoding/json"
)

func compact(text json.RawMessage) json.RawMessage {
	if text == nil {
		return nil
	}
	var buf bytes.Buffer
	if err := json.Compact(&buf, text); err != nil {
		panic(err)
	}
	return buf.Bytes()
}
