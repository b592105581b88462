package tail

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// trace is an event of ours, in the form of those of Workers.
type trace struct {
	Outcome    *string           `json:"outcome"`
	ScriptName string            `json:"scriptName"`
	Version    *version          `json:"scriptVersion,omitempty"`
	Exceptions []json.RawMessage `json:"exceptions"`
	Logs       []json.RawMessage `json:"logs"`
	Timestamp  int64             `json:"eventTimestamp"`
	Event      any               `json:"event"`
}

type version struct {
	ID string `json:"id"`
}

// notice is an event that tells about the tail itself.
type notice struct {
	Message string `json:"message"`
	Type    string `json:"type"`
}

func noticeEvent(worker, kind, text string, now time.Time) json.RawMessage {
	ok := "ok"
	return encode(trace{Outcome: &ok, ScriptName: worker, Exceptions: []json.RawMessage{}, Logs: []json.RawMessage{},
		Timestamp: now.UnixMilli(), Event: notice{text, kind}})
}

// overload tells a follower that it is too slow.
func overload(worker string, lost int64, now time.Time) json.RawMessage {
	return noticeEvent(worker, "overload", fmt.Sprintf("Tail is currently dropping messages, %d so far, due to their high volume. To prevent messages from being dropped consider adding filters.", lost), now)
}

// overloadStop tells it that it has caught up.
func overloadStop(worker string, now time.Time) json.RawMessage {
	return noticeEvent(worker, "overload-stop", "Tail is no longer dropping messages.", now)
}

// logEvent is a line that was kept, as an event without an occasion.
func logEvent(worker string, l logged) json.RawMessage {
	t := trace{ScriptName: worker, Exceptions: []json.RawMessage{}, Logs: []json.RawMessage{l.entry}, Timestamp: l.at.UnixMilli()}
	if l.version != "" {
		t.Version = &version{l.version}
	}
	return encode(t)
}

// encode writes what can always be written.
func encode(v any) json.RawMessage {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("write an event: %v", err))
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
}

// fitting returns an event that is small enough to be sent: without what was
// logged, or what was thrown, if it is not.
func fitting(event json.RawMessage) json.RawMessage {
	if len(event) <= MaxEventBytes {
		return event
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(event, &fields) != nil {
		fields = map[string]json.RawMessage{}
	}
	fields["truncated"], fields["logs"] = json.RawMessage("true"), json.RawMessage("[]")
	if less := encode(fields); len(less) <= MaxEventBytes {
		return less
	}
	fields["exceptions"], fields["event"] = json.RawMessage("[]"), json.RawMessage("null")
	if less := encode(fields); len(less) <= MaxEventBytes {
		return less
	}
	return encode(map[string]any{"truncated": true, "outcome": "unknown", "logs": []any{}, "exceptions": []any{}, "event": nil})
}
