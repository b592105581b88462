package examples_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/internal/nearkeytest"
)

// maxImage is the size of the largest image that the example takes.
const maxImage = 10 << 20

// picture is an image that does not compress.
func picture(t *testing.T, seed uint64) image.Image {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 0))
	img := image.NewPaletted(image.Rect(0, 0, 300, 200), color.Palette{color.Black, color.White})
	for i := range img.Pix {
		img.Pix[i] = byte(random.IntN(2))
	}
	return img
}

func encoded(t *testing.T, encode func(io.Writer, image.Image) error, seed uint64) string {
	t.Helper()
	var b bytes.Buffer
	check(t, encode(&b, picture(t, seed)))
	return b.String()
}

func asJPEG(w io.Writer, m image.Image) error { return jpeg.Encode(w, m, nil) }
func asGIF(w io.Writer, m image.Image) error  { return gif.Encode(w, m, nil) }

// TestImages: what was uploaded is served byte for byte, as what it is.
func TestImages(t *testing.T) {
	t.Parallel()
	p := deploy(t, "images")
	worker("images").do(t, http.MethodPut, "/a.png", "x", "Authorization: Bearer undefined").want(t, http.StatusUnauthorized, "") // no secret yet
	p.wrangler(t, "deploy", "--secrets-file", p.file(t, ".secrets", "UPLOAD_TOKEN=one-two-three\n"))
	images := worker("images")
	const admin = "Authorization: Bearer one-two-three"
	tom, other := encoded(t, png.Encode, 1), encoded(t, png.Encode, 2)
	shown := func(name, content, kind string) answer {
		t.Helper()
		a := images.get(t, name).want(t, http.StatusOK, "").wantHeader(t, "Content-Type", kind).
			wantHeader(t, "ETag", etagOf(content)).wantHeader(t, "Content-Length", strconv.Itoa(len(content))).
			wantHeader(t, "X-Content-Type-Options", "nosniff")
		if sha256.Sum256(a.body) != sha256.Sum256([]byte(content)) {
			t.Fatalf("%s is not what was uploaded: %d bytes of %d", name, len(a.body), len(content))
		}
		return a
	}

	images.get(t, "/cats/tom.png").want(t, http.StatusNotFound, "") // which is cached
	images.do(t, http.MethodPut, "/cats/tom.png", tom, admin, "Content-Type: text/html").want(t, http.StatusCreated, "image/png").
		wantHeader(t, "ETag", etagOf(tom))
	nearkeytest.Eventually(t, "the image is there", func() error { return statusOf(images.get(t, "/cats/tom.png"), http.StatusOK) })
	a := shown("/cats/tom.png", tom, "image/png")
	if _, err := png.Decode(bytes.NewReader(a.body)); err != nil {
		t.Fatal(err)
	}
	if stored := p.nearkey(t, "kv", "get", "images-images", "cats/tom.png"); stored != strings.TrimSpace(tom) {
		t.Error("what is stored is not what was uploaded")
	}
	for kind, content := range map[string]string{
		"image/jpeg": encoded(t, asJPEG, 3), "image/gif": encoded(t, asGIF, 4), "image/webp": "RIFF\x10\n\x00\x00WEBPVP8 ",
	} {
		images.do(t, http.MethodPut, "/"+kind, content, admin).want(t, http.StatusCreated, kind)
		shown("/"+kind, content, kind)
	}

	// Nothing is sent twice to those who have it.
	for _, tag := range []string{etagOf(tom), "W/" + etagOf(tom), `"x", ` + etagOf(tom), "*"} {
		a := images.get(t, "/cats/tom.png", "If-None-Match: "+tag).want(t, http.StatusNotModified, "").wantHeader(t, "ETag", etagOf(tom))
		if len(a.body) != 0 {
			t.Errorf("an image of %d bytes was sent again", len(a.body))
		}
	}
	images.get(t, "/cats/tom.png", "If-None-Match: "+etagOf(other)).want(t, http.StatusOK, tom)
	head := images.do(t, http.MethodHead, "/cats/tom.png", "").want(t, http.StatusOK, "").wantHeader(t, "ETag", etagOf(tom))
	head.wantHeader(t, "Content-Type", "image/png").wantHeader(t, "Content-Length", strconv.Itoa(len(tom)))

	// Another image under the same name is another image.
	images.do(t, http.MethodPut, "/cats/tom.png", other, admin).want(t, http.StatusCreated, "")
	nearkeytest.Eventually(t, "the image is another", func() error {
		return statusOf(images.get(t, "/cats/tom.png", "If-None-Match: "+etagOf(tom)), http.StatusOK)
	})
	shown("/cats/tom.png", other, "image/png")

	imageLimits(t, images, admin)
	imageListing(t, images, admin)
	images.do(t, http.MethodDelete, "/cats/tom.png", "", admin).want(t, http.StatusNoContent, "")
	nearkeytest.Eventually(t, "the image is gone", func() error { return statusOf(images.get(t, "/cats/tom.png"), http.StatusNotFound) })
}

// imageListing lists the five images that there are, and then more than a page.
func imageListing(t *testing.T, images site, admin string) {
	var list struct {
		Images []struct{ Name, Type string }
		Cursor string
	}
	images.get(t, "/", admin).want(t, http.StatusOK, "").into(t, &list)
	if len(list.Images) != 5 || list.Images[1].Name != "cats/tom.png" || list.Images[1].Type != "image/png" || list.Cursor != "" {
		t.Errorf("the images are %+v", list)
	}
	more := make([]client.Pair, 96)
	for i := range more {
		more[i].Key = fmt.Sprintf("many/%02d.png", i)
	}
	_, err := shared.kv.PutMany(t.Context(), namespaceOf(t, "images-images").id, more)
	check(t, err)
	images.get(t, "/", admin).want(t, http.StatusOK, "").into(t, &list)
	if len(list.Images) != 100 || list.Cursor == "" {
		t.Fatalf("a page has %d images, and the cursor is %q", len(list.Images), list.Cursor)
	}
	images.get(t, "/?cursor="+url.QueryEscape(list.Cursor), admin).want(t, http.StatusOK, "").into(t, &list)
	if len(list.Images) != 1 || list.Images[0].Name != "many/95.png" {
		t.Errorf("the last page is %+v", list.Images)
	}
}

// imageLimits sends what is too large, what is no image, and what is nobody's.
func imageLimits(t *testing.T, images site, admin string) {
	large := encoded(t, png.Encode, 5)
	large += strings.Repeat("x", maxImage-len(large))
	images.do(t, http.MethodPut, "/Large.png", large, admin).want(t, http.StatusCreated, "")
	if a := images.get(t, "/Large.png"); sha256.Sum256(a.body) != sha256.Sum256([]byte(large)) {
		t.Errorf("the largest image came back as %d bytes", len(a.body))
	}
	images.do(t, http.MethodPut, "/larger.png", large+"x", admin).want(t, http.StatusRequestEntityTooLarge, strconv.Itoa(maxImage))
	// A body whose length is not told.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, string(images)+"/larger.png", io.MultiReader(strings.NewReader(large), strings.NewReader("x")))
	check(t, err)
	req.Header.Set("Authorization", "Bearer one-two-three")
	resp, err := shared.web.Do(req)
	check(t, err)
	check(t, resp.Body.Close())
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a long body without a length: status %d", resp.StatusCode)
	}
	images.get(t, "/larger.png").want(t, http.StatusNotFound, "")

	for _, content := range []string{"", "<html></html>", `<svg xmlns="http://www.w3.org/2000/svg"/>`, "PNG"} {
		images.do(t, http.MethodPut, "/page.png", content, admin, "Content-Type: image/png").want(t, http.StatusUnsupportedMediaType, "PNG")
	}
	for _, name := range []string{"/", "/.hidden", "/a//b", "/a%20b", "/" + strings.Repeat("a", 101)} {
		images.do(t, http.MethodPut, name, large[:100], admin).want(t, http.StatusBadRequest, "name")
	}
	images.do(t, http.MethodPost, "/a.png", large[:100], admin).want(t, http.StatusMethodNotAllowed, "")
	for _, header := range []string{"X: y", "Authorization: Bearer one-two-four", "Authorization: Bearer "} {
		images.do(t, http.MethodPut, "/Large.png", large[:100], header).want(t, http.StatusUnauthorized, "not for you")
		images.do(t, http.MethodDelete, "/Large.png", "", header).want(t, http.StatusUnauthorized, "not for you")
		images.get(t, "/", header).want(t, http.StatusUnauthorized, "not for you")
	}
}

// etagOf is the ETag of what has this content.
func etagOf(content string) string {
	hash := sha256.Sum256([]byte(content))
	return `"` + hex.EncodeToString(hash[:]) + `"`
}

// statusOf complains unless an answer has a status.
func statusOf(a answer, status int) error {
	if a.status != status {
		return fmt.Errorf("status %d, want %d: %.200s", a.status, status, a.body)
	}
	return nil
}
