package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/nearkey/nearkey/client"
)

// item is one thing that an import meets.
type item struct {
	client.Pair
	where   string       // line 17, element 4, a path
	bytes   int64        // of the value
	file    *client.Body // the value, if it is streamed from disk instead of in Pair
	refused error        // why it cannot be imported
	skipped string       // why it is left out, such as: a symbolic link
}

// source is the input of an import.
type source struct {
	itemReader
	closer   io.Closer // nil: nothing to close
	bytes    int64     // how far place will come; -1: unknown
	identity identity  // what it was when it was opened
}

// itemReader yields the items of an input, always in the same order. It is used
// by one goroutine.
type itemReader interface {
	// next returns the next item, io.EOF after the last.
	next() (item, error)
	// skip goes over n items.
	skip(n int64) error
	// place is how far it has come, and a digest of the items so far, which is
	// empty if the identity of the source says all.
	place() (offset int64, digest string)
}

func (s *source) Close() error {
	if s.closer == nil {
		return nil
	}
	return s.closer.Close()
}

// identity tells whether an input is the one that an interrupted import read.
type identity struct {
	Bytes    int64     `json:"bytes"`
	Modified time.Time `json:"modified,omitzero"`
	Listing  string    `json:"listing,omitempty"` // SHA-256 of the names, sizes and times in a directory
}

// The formats of an input.
const (
	formatNDJSON    = "ndjson"
	formatJSON      = "json"
	formatDirectory = "directory"
)

// input is what an import is told about its input.
type input struct {
	path      string
	format    string // empty: detected
	prefix    string // put before every key
	noTrailer bool
}

// openSource opens an input, and says in which format it is.
func (m *Main) openSource(in input) (*source, string, error) {
	switch in.format {
	case "", formatNDJSON, formatJSON, formatDirectory:
	default:
		return nil, "", usagef("--format %q: want ndjson, json or directory%s", in.format,
			didYouMean(in.format, []string{formatNDJSON, formatJSON, formatDirectory}))
	}
	if in.path == "-" {
		return openStream(m.Stdin, in, source{bytes: -1, identity: identity{Bytes: -1}})
	}
	info, err := os.Stat(in.path)
	if err != nil {
		return nil, "", usageError(err)
	}
	if info.IsDir() {
		if in.format != "" && in.format != formatDirectory {
			return nil, "", usagef("--format %s: %s is a directory", in.format, in.path)
		}
		return openDirectory(in.path, in.prefix), formatDirectory, nil
	}
	f, err := os.Open(in.path)
	if err != nil {
		return nil, "", usageError(err)
	}
	s, format, err := openStream(f, in, source{
		closer: f, bytes: info.Size(), identity: identity{Bytes: info.Size(), Modified: info.ModTime()},
	})
	if err != nil {
		return nil, "", errors.Join(err, f.Close())
	}
	return s, format, nil
}

// openStream reads an input that is read from begin to end.
func openStream(r io.Reader, in input, s source) (*source, string, error) {
	buffered := bufio.NewReaderSize(r, 256<<10)
	if in.format == "" {
		var err error
		if in.format, err = detect(buffered); err != nil {
			return nil, "", usagef("%s: %w", in.path, err)
		}
	}
	switch in.format {
	case formatDirectory:
		return nil, "", usagef("--format directory: %s is none", in.path)
	case formatJSON:
		s.itemReader = newPairReader(buffered, in.prefix)
	default:
		records := client.NewRecordReader(buffered)
		records.NoTrailer = in.noTrailer
		s.itemReader = &recordItems{records, in.prefix}
	}
	return &s, in.format, nil
}

// detect tells the format of an input by how it begins.
func detect(r *bufio.Reader) (string, error) {
	begin, err := r.Peek(512)
	if err != nil && err != io.EOF {
		return "", err
	}
	if len(begin) >= 2 && begin[0] == 0x1f && begin[1] == 0x8b {
		return "", errors.New("it is compressed; do: gunzip -c FILE | nearkey import NAMESPACE -")
	}
	for _, b := range begin {
		switch b {
		case ' ', '\t', '\r', '\n':
			continue
		case '[':
			return formatJSON, nil
		case '{':
			return formatNDJSON, nil
		}
		return "", errors.New("it begins neither as NDJSON ({) nor as a JSON array ([); a single value is written with 'nearkey kv put --path'")
	}
	return "", errors.New("it is empty")
}

// recordItems yields the records of the NDJSON form.
type recordItems struct {
	records *client.RecordReader
	prefix  string
}

func (r *recordItems) next() (item, error) {
	rec, err := r.records.Read()
	if err != nil {
		return item{}, err
	}
	return item{
		Pair: client.Pair{Key: r.prefix + rec.Key, Value: rec.Value, PutOptions: client.PutOptions{
			Expiration: rec.Expiration, Metadata: rec.Metadata,
		}},
		where: fmt.Sprintf("line %d", r.records.Count()), bytes: int64(len(rec.Value)),
	}, nil
}

func (r *recordItems) skip(n int64) error     { return r.records.Skip(n) }
func (r *recordItems) place() (int64, string) { return r.records.Offset(), r.records.SHA256() }
