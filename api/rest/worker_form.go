package rest

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"regexp"
	"unicode"
	"unicode/utf8"

	"github.com/nearkey/nearkey/catalog"
)

// moduleTypes are the content types of parts that the runtime can load.
var moduleTypes = map[string]bool{
	"application/javascript+module": true,
	"application/javascript":        true, // CommonJS, or the script in the service worker format
	"application/wasm":              true,
	"application/octet-stream":      true,
	"text/plain":                    true,
	"application/json":              true,
}

// moduleAliases are content types that mean one of those.
var moduleAliases = map[string]string{
	"text/javascript+module":   "application/javascript+module",
	"text/javascript":          "application/javascript",
	"application/x-javascript": "application/javascript",
	"application/text":         "text/plain",
}

// sourceMap is the content type of a part that is not needed to run a Worker.
const sourceMap = "application/source-map"

const (
	maxModuleNameBytes = 1024
	// scriptParts is the greatest number of parts: what describes the upload, the
	// modules, and a source map of each.
	scriptParts = 1 + 2*catalog.MaxModules
)

// script is an uploaded form: the metadata as it was sent, and the modules.
type script struct {
	metadata  []byte
	flat      map[string]any         // the metadata, if its fields are parts of their own
	flatBytes int                    // of the values in flat
	modules   []catalog.WorkerModule // without hashes
	contents  map[string][]byte      // by the name of the module
	size      int64                  // of the contents
}

// readScript reads the form of an upload. The field that describes it comes first
// in what wrangler sends; here it may come anywhere. Its name is metadata, and
// settings in a change of settings.
func (c *call) readScript(about string) (*script, error) {
	contentType := c.r.Header.Get("Content-Type")
	boundary, isForm, err := formBoundary(contentType)
	if err != nil {
		return nil, err
	}
	if err := c.body.limit(scriptFormBytes, scriptTooLarge); err != nil {
		return nil, err
	}
	if err := c.hold.prepay(max(c.body.length(), 0)); err != nil {
		return nil, err
	}
	body := bufio.NewReaderSize(&c.body, peekedBytes)
	if !isForm && about == "metadata" && isJavaScript(contentType) {
		if boundary, isForm = peekBoundary(body); !isForm {
			return c.readBareScript(body)
		}
	}
	if !isForm {
		return nil, badUpload("A Worker is uploaded as multipart/form-data with a part '%s' and a part for each module.", about)
	}
	f := form{call: c, parts: multipart.NewReader(wholeForm(body), boundary), total: scriptFormBytes, most: scriptParts}
	up := &script{contents: map[string][]byte{}}
	for {
		part, err := f.next()
		if err == io.EOF {
			break
		}
		if err == nil {
			c.body.most, c.body.over = f.total, scriptTooLarge
			err = up.add(c, part, about)
		}
		if err != nil {
			return nil, bodyFailure(err)
		}
	}
	// What follows the last boundary means nothing, but must have arrived.
	if _, err := io.Copy(io.Discard, body); err != nil {
		return nil, bodyFailure(err)
	}
	if up.metadata == nil && up.flat != nil {
		if up.metadata, err = marshal(up.flat); err != nil {
			return nil, err
		}
	}
	if up.metadata == nil {
		return nil, badUpload("The form has no part '%s'.", about)
	}
	return up, nil
}

// bareScript is the name of the script of an upload that has no form.
const bareScript = "worker.js"

// readBareScript reads an upload that is nothing but a script in the service worker
// format, as older clients send one without bindings.
func (c *call) readBareScript(body io.Reader) (*script, error) {
	content, err := c.readPart(body, catalog.MaxModuleBytes, func() error { return errScriptSize })
	if err != nil {
		return nil, bodyFailure(err)
	}
	return &script{
		metadata: []byte(`{"body_part":"` + bareScript + `"}`),
		modules:  []catalog.WorkerModule{{Name: bareScript, Type: "application/javascript", Size: len(content)}},
		contents: map[string][]byte{bareScript: content},
		size:     int64(len(content)),
	}, nil
}

func isJavaScript(contentType string) bool {
	kind, _, err := mime.ParseMediaType(contentType)
	return err == nil && (kind == "application/javascript" || moduleAliases[kind] == "application/javascript")
}

// peekedBytes is how much of a body is looked at to find out what it is.
const peekedBytes = 512

var formStart = regexp.MustCompile(`^--([0-9A-Za-z'()+_,./:=?-]{1,70})\r\nContent-Disposition: form-data;`)

// peekBoundary finds the boundary of a form that says that it is a script, as the
// SDK for TypeScript sends them. No script begins so.
func peekBoundary(body *bufio.Reader) (boundary string, isForm bool) {
	start, _ := body.Peek(peekedBytes) // it may be shorter
	found := formStart.FindSubmatch(start)
	if found == nil {
		return "", false
	}
	return string(found[1]), true
}

func scriptTooLarge(int64) error { return errScriptSize }

// errScriptSize: all of the modules, as they are, exceed what may be held.
var errScriptSize = refuse(http.StatusRequestEntityTooLarge, codeScriptSize,
	"Your Worker exceeded the size limit of %d MiB before compression.", MaxScriptFullBytes>>20)

// add takes a part of the form. The name of a module is the part's, folders
// included.
func (up *script) add(c *call, part *multipart.Part, about string) error {
	name := moduleName(part)
	if fields := flatFields(name, about); fields != nil {
		return up.addField(c, part, fields)
	}
	if name == about {
		if up.metadata != nil {
			return badUpload("The form has the part '%s' twice.", about)
		}
		var err error
		up.metadata, err = c.readPart(part, maxUploadMetadata, func() error {
			return badUpload("The part '%s' has more than %d bytes.", about, maxUploadMetadata)
		})
		return err
	}
	return up.addModule(c, part, name)
}

// addModule takes a part that is a module.
func (up *script) addModule(c *call, part *multipart.Part, name string) error {
	kind, err := moduleType(name, part.Header.Get("Content-Type"))
	switch {
	case err != nil:
		return err
	case kind == sourceMap:
		_, err := io.Copy(io.Discard, part)
		return err
	case !isModuleName(name):
		return badUpload("The name of a module has 1 to %d bytes of UTF-8 without control characters; '%s' is none.", maxModuleNameBytes, shown(name))
	case up.contents[name] != nil:
		return badUpload("The form has the module '%s' twice.", shown(name))
	case len(up.modules) == catalog.MaxModules:
		return badUpload("A Worker has at most %d modules.", catalog.MaxModules)
	}
	content, err := c.readPart(part, catalog.MaxModuleBytes, func() error {
		return refuse(http.StatusRequestEntityTooLarge, codeScriptSize,
			"The module '%s' exceeded the size limit of %d MiB.", shown(name), catalog.MaxModuleBytes>>20)
	})
	if err != nil {
		return err
	}
	if up.size += int64(len(content)); up.size > MaxScriptFullBytes {
		return errScriptSize
	}
	up.modules = append(up.modules, catalog.WorkerModule{Name: name, Type: kind, Size: len(content)})
	up.contents[name] = content
	return nil
}

var filesPart = regexp.MustCompile(`^files(\[\d*\]|\.\d+)?$`)

// moduleName is the name of a part, or of its file where SDKs name all parts alike.
// part.FileName would take the folders from it.
func moduleName(part *multipart.Part) string {
	name := part.FormName()
	if !filesPart.MatchString(name) {
		return name
	}
	if _, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition")); err == nil && params["filename"] != "" {
		return params["filename"]
	}
	return name
}

// readPart reads a part of at most most bytes; it is not nil.
func (c *call) readPart(part io.Reader, most int64, over func() error) ([]byte, error) {
	content, err := c.readAll(io.LimitReader(part, most+1), -1, most+1) // one more tells that there is more
	switch {
	case err != nil:
		return nil, err
	case int64(len(content)) > most:
		return nil, over()
	case content == nil:
		content = []byte{}
	}
	return content, nil
}

// moduleType is what a part is, by its content type.
func moduleType(name, contentType string) (string, error) {
	kind, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return "", badUpload("The part '%s' has no content type that tells what kind of module it is.", shown(name))
	}
	if alias, ok := moduleAliases[kind]; ok {
		kind = alias
	}
	if kind != sourceMap && !moduleTypes[kind] {
		return "", badUpload("The module '%s' has the type '%s', which is not supported. Modules are JavaScript, WebAssembly, text, JSON or data.", shown(name), shown(kind))
	}
	return kind, nil
}

func isModuleName(name string) bool {
	if name == "" || len(name) > maxModuleNameBytes || !utf8.ValidString(name) {
		return false
	}
	for _, r := range name {
		if unicode.IsControl(r) {
			return false
		}
	}
	return true
}

// checkSize refuses modules that are too large when they are compressed.
func (up *script) checkSize() error {
	if up.size <= MaxScriptBytes {
		return nil
	}
	var n countedBytes
	z := gzip.NewWriter(&n)
	for _, m := range up.modules {
		if _, err := z.Write(up.contents[m.Name]); err != nil {
			return fmt.Errorf("compress a Worker: %w", err)
		}
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("compress a Worker: %w", err)
	}
	if n > MaxScriptBytes {
		return refuse(http.StatusRequestEntityTooLarge, codeScriptSize,
			"Your Worker exceeded the size limit of %d MiB after compression.", MaxScriptBytes>>20)
	}
	return nil
}

// countedBytes is where bytes go that only matter by their number.
type countedBytes int64

func (n *countedBytes) Write(p []byte) (int, error) {
	*n += countedBytes(len(p))
	return len(p), nil
}
