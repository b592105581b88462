package backup

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A frame is
//
//	4 bytes   length of the payload
//	4 bytes   CRC-32C of the kind and the payload
//	1 byte    kind
//	payload
//
// with numbers in big-endian order.
const (
	frameHead = 9
	// MaxFrameBytes is the greatest payload of a frame.
	MaxFrameBytes = 1 << 20
)

// The kinds of frames. Payloads are JSON but for frameRecords.
const (
	frameBegin     = 'b' // of a snapshot: beginInfo
	frameNamespace = 'n' // the records that follow are of this Namespace
	frameRecords   = 'r' // a part of a sequence of records; one record may span several
	frameCut       = 'e' // the namespace is complete: cutInfo
	frameGone      = 'g' // the namespace was deleted meanwhile: Namespace
	frameLink      = 'l' // of what is put back: the records that follow are of one snapshot: linkInfo
	frameTarget    = 't' // of what is put back: Target
	frameHeart     = 'h' // the sender lives
	frameEnd       = 'z' // all is told: endInfo
	frameFailed    = 'x' // there will be no end: failInfo
)

// streamMagic begins a stream, segmentMagic a segment.
const (
	streamMagic  = "nearkey backup stream 1\n"
	segmentMagic = "nearkey backup segment 1\n"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frame is one frame with its head, as it travels and rests.
type frame []byte

func (f frame) kind() byte      { return f[8] }
func (f frame) payload() []byte { return f[frameHead:] }

// seal fills in the head of a frame whose payload is complete.
func (f frame) seal(kind byte) {
	f[8] = kind
	binary.BigEndian.PutUint32(f[0:], uint32(len(f)-frameHead))
	binary.BigEndian.PutUint32(f[4:], crc32.Checksum(f[8:], castagnoli))
}

func newFrame(kind byte, payload []byte) frame {
	f := append(make(frame, frameHead, frameHead+len(payload)), payload...)
	f.seal(kind)
	return f
}

// jsonFrame is a frame of a value that JSON can tell.
func jsonFrame(kind byte, v any) frame {
	text, err := json.Marshal(v)
	if err != nil {
		panic("backup: writing a frame: " + err.Error()) // it has nothing that can fail
	}
	return newFrame(kind, text)
}

func (f frame) decode(v any) error {
	if err := json.Unmarshal(f.payload(), v); err != nil {
		return fmt.Errorf("read a frame of kind %q: %w: %w", f.kind(), ErrDamaged, err)
	}
	return nil
}

// frameReader reads frames. What next returned is valid until the next call.
type frameReader struct {
	r    *bufio.Reader
	buf  frame
	peek bool // the frame in buf is to be returned once more
}

// newFrameReader reads the magic with which frames begin.
func newFrameReader(r io.Reader, magic string) (*frameReader, error) {
	f := &frameReader{r: bufio.NewReaderSize(r, 64<<10)}
	got := make([]byte, len(magic))
	if _, err := io.ReadFull(f.r, got); err != nil {
		return nil, cut(err)
	}
	if string(got) != magic {
		return nil, fmt.Errorf("%w: it begins with %q, not with %q", ErrDamaged, got, magic)
	}
	return f, nil
}

// next returns the next frame; io.EOF if there is none.
func (f *frameReader) next() (frame, error) {
	if f.peek {
		f.peek = false
		return f.buf, nil
	}
	f.buf = append(f.buf[:0], make([]byte, frameHead)...)
	if _, err := io.ReadFull(f.r, f.buf); err != nil {
		if err == io.EOF {
			return nil, io.EOF
		}
		return nil, cut(err)
	}
	n := binary.BigEndian.Uint32(f.buf)
	if n > MaxFrameBytes {
		return nil, fmt.Errorf("%w: a frame of %d bytes, at most %d are possible", ErrDamaged, n, MaxFrameBytes)
	}
	if need := frameHead + int(n); cap(f.buf) < need {
		f.buf = append(make(frame, 0, need), f.buf...)
	}
	f.buf = f.buf[:frameHead+int(n)]
	if _, err := io.ReadFull(f.r, f.buf[frameHead:]); err != nil {
		return nil, cut(err)
	}
	if sum := crc32.Checksum(f.buf[8:], castagnoli); sum != binary.BigEndian.Uint32(f.buf[4:]) {
		return nil, fmt.Errorf("%w: the checksum of a frame differs", ErrDamaged)
	}
	return f.buf, nil
}

// unread has next return the last frame once more.
func (f *frameReader) unread() { f.peek = true }

// cut is the error of a stream that ended early.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrCut
	}
	return err
}

// payloads are the payloads of the frames of records that follow, as one stream.
// It ends before the first frame of another kind; frames that only tell that the
// sender lives are left out.
type payloads struct {
	frames *frameReader
	rest   []byte
}

func (p *payloads) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		f, err := p.frames.next()
		if err == io.EOF {
			return 0, io.EOF
		}
		if err != nil {
			return 0, err
		}
		switch f.kind() {
		case frameRecords:
			p.rest = f.payload()
		case frameHeart:
		default:
			p.frames.unread()
			return 0, io.EOF
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
