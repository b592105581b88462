package feed

import (
	"context"

	"github.com/nearkey/nearkey/kv"
)

// Local is the stream of a hub of this process.
type Local struct {
	Hub    *Hub
	Member Member
}

var _ Stream = Local{}

// Follow implements Stream.
func (l Local) Follow(ctx context.Context, after kv.Cursor, each func(Message) error) error {
	sub, err := l.Hub.Subscribe(after, l.Member)
	if err != nil {
		return err
	}
	defer sub.Close()
	for {
		m, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		if err := each(m); err != nil {
			return err
		}
		if len(m.Told) > 0 {
			if err := sub.Ack(m.Acks); err != nil {
				return err
			}
		}
	}
}
