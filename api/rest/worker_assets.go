package rest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/assets"
)

// Static assets are uploaded before the version that has them: a session tells
// which files are missing, forms bring those, and the last one is answered with
// the token that the version's metadata then names. The tokens say all that there
// is to know of a session: nothing of it is kept.

// Limits of uploads of static assets. Those of the catalog hold as well.
const (
	// maxAssetListBytes is the greatest body that begins a session: a path, a hash
	// and a size of each file.
	maxAssetListBytes = 16 << 20
	// bucketBytes and bucketFiles are how much is asked for in one form, unless a
	// file alone has more.
	bucketBytes = 8 << 20
	bucketFiles = 200
	// assetFormBytes is the greatest form: the largest file in base64, and what is
	// around it.
	assetFormBytes = (catalog.MaxAssetBytes+2)/3*4 + 2<<20
	// assetTokenLife is how long a token is good for. The catalog keeps what was
	// uploaded for longer.
	assetTokenLife = catalog.ModuleGrace - 10*time.Minute
)

// Codes of static assets.
const (
	codeAssetToken     = 10013
	codeAssetRedirects = 100324
)

// assetToken is what a session's tokens say. wrangler reads when they expire.
type assetToken struct {
	Account string `json:"account"`
	Script  string `json:"script"`
	Set     string `json:"set"`
	Done    bool   `json:"done"` // all files are stored: a version may have them
	Issued  int64  `json:"iat"`
	Expires int64  `json:"exp"`
}

var jwtHead = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`))

// assetJWT returns a token, signed.
func (s *Server) assetJWT(t assetToken) (string, error) {
	now := time.Now()
	t.Issued, t.Expires = now.Unix(), now.Add(assetTokenLife).Unix()
	text, err := marshal(t)
	if err != nil {
		return "", fmt.Errorf("write a token: %w", err)
	}
	signed := jwtHead + "." + base64.RawURLEncoding.EncodeToString(text)
	return signed + "." + base64.RawURLEncoding.EncodeToString(s.workers.Keys.Sign([]byte(signed))), nil
}

// readAssetJWT returns what a token says that was given out here for an account.
func (s *Server) readAssetJWT(jwt, account string) (t assetToken, err error) {
	bad := refuse(http.StatusUnauthorized, codeAssetToken, "The token of the assets upload session is not valid. Please begin another session.")
	end := strings.LastIndexByte(jwt, '.')
	if end < 0 || len(jwt) > maxAssetJWT {
		return t, bad
	}
	signed, signature := jwt[:end], jwt[end+1:]
	mac, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil || !s.workers.Keys.Signed([]byte(signed), mac) {
		return t, bad
	}
	_, payload, _ := strings.Cut(signed, ".")
	text, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil || json.Unmarshal(text, &t) != nil || t.Account != account {
		return t, bad
	}
	if time.Now().Unix() >= t.Expires {
		return t, refuse(http.StatusUnauthorized, codeAssetToken, "The token of the assets upload session has expired. Please begin another session: what was uploaded is kept.")
	}
	return t, nil
}

// maxAssetJWT is the greatest length of a token.
const maxAssetJWT = 4 << 10

// assetSession is the answer that begins a session.
type assetSession struct {
	JWT     string     `json:"jwt"`
	Buckets [][]string `json:"buckets"`
}

// beginAssets serves POST …/scripts/{name}/assets-upload-session. The Worker may be
// new.
func (s *Server) beginAssets(ctx context.Context, c *call) error {
	name, err := c.newWorkerName()
	if err != nil {
		return err
	}
	if err := c.body.limit(maxAssetListBytes, assetListTooLong); err != nil {
		return err
	}
	text, err := c.readAll(&c.body, c.body.length(), maxAssetListBytes)
	if err != nil {
		return bodyFailure(err)
	}
	var sent struct {
		Manifest catalog.AssetSet `json:"manifest"`
	}
	if json.Unmarshal(text, &sent) != nil || sent.Manifest == nil {
		return invalid("The request body must be a JSON object whose 'manifest' tells the hash and the size of each file")
	}
	set, missing, err := s.catalog.BeginAssets(ctx, c.route.account, sent.Manifest)
	if err != nil {
		return workerFailure(err)
	}
	jwt, err := s.assetJWT(assetToken{Account: c.route.account, Script: name, Set: set, Done: len(missing) == 0})
	if err != nil {
		return err
	}
	return c.give(assetSession{jwt, buckets(sent.Manifest, missing)}, nil)
}

func assetListTooLong(n int64) error {
	return refuse(http.StatusRequestEntityTooLarge, codeInvalid, "A list of assets has at most %d bytes, this one has %d.", maxAssetListBytes, n)
}

// buckets divides files into those that are to be sent together.
func buckets(files catalog.AssetSet, missing []string) [][]string {
	sizes := make(map[string]int64, len(files))
	for _, a := range files {
		sizes[a.Hash] = a.Size
	}
	all, size := [][]string{}, int64(0)
	for _, hash := range missing {
		last := len(all) - 1
		if last < 0 || size+sizes[hash] > bucketBytes || len(all[last]) == bucketFiles {
			all, size = append(all, nil), 0
			last++
		}
		all[last] = append(all[last], hash)
		size += sizes[hash]
	}
	return all
}

// uploadAssets serves POST …/workers/assets/upload: a form whose parts are files,
// named by their hashes. The token of the session permits it.
func (s *Server) uploadAssets(ctx context.Context, c *call) error {
	scheme, jwt, _ := strings.Cut(c.r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		jwt = ""
	}
	token, err := s.readAssetJWT(jwt, c.route.account)
	if err != nil {
		return err
	}
	set, err := s.catalog.AssetSet(ctx, token.Account, token.Set)
	if err != nil {
		return assetFailure(err)
	}
	files, err := s.readAssets(c, set)
	if err != nil {
		return err
	}
	complete, err := s.catalog.PutAssets(ctx, token.Account, token.Set, files)
	if err != nil {
		return assetFailure(err)
	}
	if !complete {
		return c.giveStatus(http.StatusAccepted, struct{}{})
	}
	token.Done = true
	if jwt, err = s.assetJWT(token); err != nil {
		return err
	}
	return c.giveStatus(http.StatusCreated, struct {
		JWT string `json:"jwt"`
	}{jwt})
}

// giveStatus is give with another status than 200.
func (c *call) giveStatus(status int, result any) error {
	text, err := marshal(envelope{Success: true, Errors: []any{}, Messages: []any{}, Result: result})
	if err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return c.send(status, typeJSON, text)
}

// assetFailure is workerFailure where a set that is gone means that its time is up.
func assetFailure(err error) error {
	if isNotFound(err) {
		return refuse(http.StatusUnauthorized, codeAssetToken, "The assets upload session has ended. Please begin another one.")
	}
	return workerFailure(err)
}

// readAssets reads a form of files.
func (s *Server) readAssets(c *call, set catalog.AssetSet) ([]catalog.AssetContent, error) {
	inBase64, err := parameter(c.r.URL.RawQuery, "base64")
	if err != nil {
		return nil, err
	}
	boundary, isForm, err := formBoundary(c.r.Header.Get("Content-Type"))
	switch {
	case err != nil:
		return nil, err
	case !isForm:
		return nil, invalid("Assets are uploaded as multipart/form-data with a part for each file, named by its hash")
	}
	if err := c.body.limit(assetFormBytes, assetFormTooLong); err != nil {
		return nil, err
	}
	if err := c.hold.prepay(max(c.body.length(), 0)); err != nil {
		return nil, err
	}
	sizes := make(map[string]int64, len(set))
	for _, a := range set {
		sizes[a.Hash] = a.Size
	}
	f := form{call: c, parts: multipart.NewReader(wholeForm(&c.body), boundary), total: assetFormBytes, most: formParts}
	files := map[string]catalog.AssetContent{}
	for {
		part, err := f.next()
		if err == io.EOF {
			break
		}
		if err == nil {
			c.body.most, c.body.over = f.total, assetFormTooLong
			err = c.addAsset(files, part, sizes, inBase64 == "true")
		}
		if err != nil {
			return nil, bodyFailure(err)
		}
	}
	// What follows the last boundary means nothing, but must have arrived.
	if _, err := io.Copy(io.Discard, &c.body); err != nil {
		return nil, bodyFailure(err)
	}
	return slices.Collect(maps.Values(files)), nil
}

func assetFormTooLong(int64) error {
	return refuse(http.StatusRequestEntityTooLarge, codeInvalid, "An upload of assets has at most %d bytes. An asset has at most %d MiB.", assetFormBytes, catalog.MaxAssetBytes>>20)
}

// noContentType is what clients call a file that has no content type.
const noContentType = "application/null"

// addAsset reads a file, which must be the one that the session has told of.
func (c *call) addAsset(files map[string]catalog.AssetContent, part *multipart.Part, sizes map[string]int64, inBase64 bool) error {
	hash := part.FormName()
	size, known := sizes[hash]
	if !known {
		return invalid("The asset '%s' is not among those of the upload session", shown(hash))
	}
	var body io.Reader = part
	if inBase64 {
		body = base64.NewDecoder(base64.StdEncoding, part)
	}
	content, err := c.readPart(body, size, func() error { return wrongAssetSize(hash, size) })
	var corrupt base64.CorruptInputError
	switch {
	case errors.As(err, &corrupt):
		return invalid("The asset '%s' is not base64", hash)
	case err != nil:
		return err
	case int64(len(content)) != size:
		return wrongAssetSize(hash, size)
	}
	kind := part.Header.Get("Content-Type")
	if kind == noContentType {
		kind = ""
	}
	if len(kind) > catalog.MaxAssetTypeBytes || strings.ContainsFunc(kind, func(r rune) bool { return r < ' ' || r > '~' }) {
		return invalid("The content type of the asset '%s' has at most %d characters of ASCII", hash, catalog.MaxAssetTypeBytes)
	}
	files[hash] = catalog.AssetContent{Hash: hash, Type: kind, Content: content}
	return nil
}

func wrongAssetSize(hash string, size int64) error {
	return invalid("The asset '%s' does not have the %d bytes that the upload session was told of", hash, size)
}

// sentAssets is what the metadata of a version says of static assets.
type sentAssets struct {
	JWT    string          `json:"jwt"`
	Config sentAssetConfig `json:"config"`
}

type sentAssetConfig struct {
	HTMLHandling     string          `json:"html_handling"`
	NotFoundHandling string          `json:"not_found_handling"`
	RunWorkerFirst   json.RawMessage `json:"run_worker_first"` // a boolean or a list of rules
	ServeDirectly    *bool           `json:"serve_directly"`   // the older spelling, the other way round
	Redirects        string          `json:"_redirects"`
	Headers          string          `json:"_headers"`
}

// hasAssets reports whether the version is to have static assets.
func (m *sentMetadata) hasAssets() bool { return m.Assets != nil || m.KeepAssets }

// assets returns the static assets of a version: those of a session that is
// complete, or those of the latest version.
func (s *Server) versionAssets(c *call, name string, sent *sentMetadata, latest *catalog.WorkerVersion) (*catalog.WorkerAssets, error) {
	switch {
	case !sent.hasAssets():
		return nil, nil
	case sent.Assets == nil || sent.Assets.JWT == "":
		there := latest != nil && latest.Manifest.Assets != nil
		if !there && sent.Assets == nil { // wrangler asks for it whether there are any or not
			return nil, nil
		}
		if !there || !sent.KeepAssets {
			return nil, badUpload("The Worker has no static assets that could be kept.")
		}
		kept := *latest.Manifest.Assets
		if sent.Assets == nil {
			return &kept, nil
		}
		return &kept, sent.Assets.Config.apply(&kept)
	}
	token, err := s.readAssetJWT(sent.Assets.JWT, c.route.account)
	switch {
	case err != nil:
		return nil, err
	case token.Script != name:
		return nil, badUpload("The assets were uploaded for the Worker '%s'.", token.Script)
	case !token.Done:
		return nil, badUpload("The upload of the assets is not complete.")
	}
	made := catalog.WorkerAssets{Set: token.Set}
	return &made, sent.Assets.Config.apply(&made)
}

// apply puts a configuration in the place of the one that is there.
func (sent *sentAssetConfig) apply(a *catalog.WorkerAssets) error {
	*a = catalog.WorkerAssets{Set: a.Set, HTMLHandling: sent.HTMLHandling, NotFoundHandling: sent.NotFoundHandling,
		Redirects: sent.Redirects, Headers: sent.Headers, WorkerFirst: sent.ServeDirectly != nil && !*sent.ServeDirectly}
	if len(sent.RunWorkerFirst) == 0 || string(sent.RunWorkerFirst) == "null" {
		return nil
	}
	if json.Unmarshal(sent.RunWorkerFirst, &a.WorkerFirst) != nil && json.Unmarshal(sent.RunWorkerFirst, &a.WorkerRules) != nil {
		return badUpload("run_worker_first is true, false or a list of rules.")
	}
	return nil
}

// checkAssets refuses a manifest whose static assets make no sense.
func checkAssets(m *catalog.Manifest) error {
	if m.Assets == nil {
		for _, b := range m.Bindings {
			if b.Type == "assets" {
				return badUpload("binding %s of type assets is for a Worker with static assets, which this version has none of.", b.Name)
			}
		}
		return nil
	}
	options := m.AssetOptions()
	var wrong *assets.Errors
	switch err := options.Check(); {
	case errors.As(err, &wrong):
		return refuse(http.StatusBadRequest, codeAssetRedirects, "%s", wrong)
	case err != nil:
		return badUpload("Invalid static assets: %s.", err)
	}
	return nil
}
