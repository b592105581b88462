package rest

import (
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"

	"github.com/nearkey/nearkey/kv"
)

const (
	// formOverheadBytes is what a form may have from one field to the next, beside
	// the value and the metadata: boundaries, headers, a field that is not looked at.
	formOverheadBytes = 1 << 20
	// formParts is the greatest number of fields in a form.
	formParts = 1000
	// metadataTextBytes is the greatest length of metadata as it is sent, before
	// the space that JSON does not need is taken out.
	metadataTextBytes = 2 * kv.MaxMetadataBytes
)

// form reads the fields of a multipart/form-data body.
type form struct {
	call   *call
	limits kv.Limits
	parts  *multipart.Reader
	total  int64 // most bytes of the body
	most   int   // fields
	count  int   // of fields
}

// readForm reads the fields "value" and "metadata" of a form, in any order. The
// metadata goes into opts and is checked at once, so that a bad one that comes
// first spares the reading of the value. Other fields are ignored, as the real
// service does: also metadata that SDKs flatten to metadata[a] or metadata.a. A
// field that occurs twice is refused: there is no telling which was meant.
// A form that ends before its last boundary or its announced length is an error.
func (s *Server) readForm(c *call, boundary string, opts *kv.PutOptions, check func() error) ([]byte, error) {
	f := form{call: c, limits: s.rules.Limits, parts: multipart.NewReader(wholeForm(&c.body), boundary), most: formParts}
	f.total = int64(f.limits.ValueBytes) + metadataTextBytes + formOverheadBytes
	if err := c.body.limit(f.total, f.limits.CheckValue); err != nil {
		return nil, err
	}
	if err := c.hold.prepay(max(c.body.length(), 0)); err != nil {
		return nil, err
	}
	var value []byte
	var hasValue, hasMetadata bool
	for {
		part, err := f.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		switch name := part.FormName(); {
		case name == "value" && hasValue, name == "metadata" && hasMetadata:
			return nil, invalid("The form has the field '%s' twice", name)
		case name == "value":
			hasValue = true
			value, err = f.value(part)
		case name == "metadata":
			hasMetadata = true
			if opts.Metadata, err = f.metadata(part); err == nil {
				err = check()
			}
		}
		if err != nil {
			return nil, err
		}
	}
	// What follows the last boundary means nothing, but must have arrived.
	if _, err := io.Copy(io.Discard, &c.body); err != nil {
		return nil, err
	}
	if !hasValue {
		return nil, &failure{status: http.StatusBadRequest, code: 10047,
			text: "multipart put request does not contain required form field 'value'"}
	}
	return value, nil
}

// wholeForm makes the end of a form that comes before its last boundary an error.
// multipart.Reader takes one within the headers of a field for a good one, and
// would let a form pass that lacks the field. It needs nothing behind the last
// boundary but the end of its line.
func wholeForm(body io.Reader) io.Reader {
	return io.MultiReader(body, strings.NewReader("\r\n"), cutOff{})
}

type cutOff struct{}

func (cutOff) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// next goes to the next field. What lies between, headers included, is bounded:
// the reader of the form keeps headers in memory.
func (f *form) next() (*multipart.Part, error) {
	b := &f.call.body
	b.most, b.over = min(f.total, b.got+formOverheadBytes), func(int64) error {
		return &failure{status: http.StatusRequestEntityTooLarge, code: codeInvalid,
			text: fmt.Sprintf("The form has a field of more than %d bytes beside its value", formOverheadBytes)}
	}
	part, err := f.parts.NextRawPart()
	if err == nil && f.count == f.most {
		return nil, invalid("A form has at most %d fields", f.most)
	}
	f.count++
	return part, err
}

func (f *form) value(part io.Reader) ([]byte, error) {
	f.call.body.most = f.total
	over := int64(f.limits.ValueBytes) + 1 // one more than allowed tells that there is more
	value, err := f.call.readAll(io.LimitReader(part, over), f.call.body.length(), over)
	if err != nil {
		return nil, err
	}
	return value, f.limits.CheckValue(int64(len(value)))
}

func (f *form) metadata(part io.Reader) ([]byte, error) {
	text, err := f.call.readAll(io.LimitReader(part, metadataTextBytes+1), -1, metadataTextBytes+1)
	switch {
	case err != nil:
		return nil, err
	case len(text) == 0: // to the rules no text is no metadata, but a field without text is not JSON
		return nil, &kv.RuleError{Rule: kv.RuleMetadata, Text: "metadata must be valid json"}
	}
	return text, nil
}
