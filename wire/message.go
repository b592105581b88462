package wire

import (
	"fmt"
	"time"

	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
)

// The frames of the feed.
const (
	frameMessage = 1
	frameEnd     = 2
)

const flagSameNamespace = 1

// message adds a frame that holds a message.
func (p *payload) message(m feed.Message) {
	mark := p.begin()
	p.u8(frameMessage)
	p.uvarint(m.From.Epoch)
	p.uvarint(m.From.Seq)
	p.uvarint(m.To.Epoch)
	p.uvarint(m.To.Seq)
	p.varint(int64(m.Elapsed))
	p.varint(int64(m.Lag))
	p.uvarint(m.Acks)
	p.changes(m.Changes, m.From.Seq)
	p.changes(m.Told, 0)
	p.end(mark)
}

func (p *payload) changes(changes []kv.Change, from uint64) {
	p.uvarint(uint64(len(changes)))
	for i, c := range changes {
		mark := p.begin()
		if i > 0 && changes[i-1].Ref.Namespace == c.Ref.Namespace {
			p.u8(flagSameNamespace)
		} else {
			p.u8(0)
			p.id(c.Ref.Namespace)
		}
		p.id(c.Version)
		p.text(c.Ref.Key)
		p.uvarint(c.Cursor.Seq - from)
		p.end(mark)
	}
}

// frame reads a frame: a message, or the error that ends the stream.
func (r *reader) frame() (feed.Message, error) {
	f, err := r.next(maxFrameBytes)
	if err != nil {
		return feed.Message{}, err
	}
	switch kind := f.u8(); {
	case f.err != nil:
		return feed.Message{}, f.err
	case kind == frameMessage:
		return f.message()
	case kind == frameEnd:
		return feed.Message{}, f.remoteError()
	default:
		return feed.Message{}, fmt.Errorf("%w: a frame of kind %d", errMalformed, kind)
	}
}

func (f *fields) message() (m feed.Message, err error) {
	m.From = kv.Cursor{Epoch: f.uvarint(), Seq: f.uvarint()}
	m.To = kv.Cursor{Epoch: f.uvarint(), Seq: f.uvarint()}
	m.Elapsed, m.Lag = time.Duration(f.varint()), time.Duration(f.varint())
	m.Acks = f.uvarint()
	m.Changes = f.changes(m.To.Epoch, m.From.Seq)
	m.Told = f.changes(0, 0)
	if f.err != nil {
		return feed.Message{}, f.err
	}
	return m, nil
}

func (f *fields) changes(epoch, from uint64) []kv.Change {
	n := f.count(feed.MaxMessageChanges)
	if n == 0 {
		return nil
	}
	changes := make([]kv.Change, 0, min(n, len(f.rest)/8+1)) // a section of few bytes does not claim memory for many
	for range n {
		s := f.section()
		var c kv.Change
		if s.u8()&flagSameNamespace == 0 {
			c.Ref.Namespace = s.id()
		} else if len(changes) > 0 {
			c.Ref.Namespace = changes[len(changes)-1].Ref.Namespace
		}
		c.Version = s.id()
		c.Ref.Key = s.text(kv.MaxKeyBytes)
		c.Cursor = kv.Cursor{Epoch: epoch, Seq: from + s.uvarint()}
		if s.err != nil {
			f.err = s.err
			return nil
		}
		changes = append(changes, c)
	}
	return changes
}
