package workerd

import (
	"encoding/binary"
	"encoding/hex"
	"html"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
)

// advice is what the owner of a Worker may do about an error.
var advice = map[int]string{
	codeThrew:   "The program behind this address failed. If it is yours, see what it threw: <code>wrangler tail</code> shows it the next time.",
	codeLimited: "The program behind this address used more than it may. If it is yours, see what takes so much, or raise the limit in the settings of the server.",
}

// Cloudflare's numbers of what a Worker does wrong.
const (
	codeUnknown = 1042
	codeThrew   = 1101
	codeLimited = 1102
)

// errorPage writes an error as Cloudflare does: a page for those who accept one,
// a line for programs.
func errorPage(w http.ResponseWriter, req *http.Request, status, code int, text, ray string) {
	h := w.Header()
	h.Set("Cache-Control", "private, no-store")
	h.Set("CF-Ray", ray)
	h.Set("X-Content-Type-Options", "nosniff")
	title := "Error"
	if code != 0 {
		title += " " + strconv.Itoa(code)
	}
	page := strings.ToLower(title) + ": " + text + "\n"
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if code != 0 {
		page = "error code: " + strconv.Itoa(code) + "\n"
	}
	if strings.Contains(req.Header.Get("Accept"), "text/html") {
		h.Set("Content-Type", "text/html; charset=utf-8")
		page = htmlPage(title, text, advice[code], req.Host, ray)
	}
	h.Set("Content-Length", strconv.Itoa(len(page)))
	w.WriteHeader(status)
	if req.Method != http.MethodHead {
		_, _ = io.WriteString(w, page)
	}
}

// htmlPage is a page that needs nothing else. Its advice is HTML, the rest is text.
func htmlPage(title, text, advice, host, ray string) string {
	if advice != "" {
		advice = "<p>" + advice + "</p>\n"
	}
	return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="robots" content="noindex">
<title>` + title + " | " + html.EscapeString(host) + `</title>
<style>
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 15vh auto; padding: 0 1.5rem }
h1 { font-size: 2rem; margin: 0 }
.what { font-size: 1.25rem; margin-top: 0 }
footer { margin-top: 3rem; font-size: .875rem; opacity: .75; overflow-wrap: anywhere }
</style>
<h1>` + title + `</h1>
<p class="what">` + html.EscapeString(text) + `</p>
` + advice + `<footer>` + html.EscapeString(host) + ` · Ray ID: ` + ray + `</footer>
</html>
`
}

// newRay names a request. It guards nothing.
func (r *Runtime) newRay() string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], rand.Uint64())
	return hex.EncodeToString(b[:]) + "-" + r.opts.Place
}
