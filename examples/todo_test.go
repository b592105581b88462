package examples_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// TestTodo: the page in a real browser, what it leaves in KV, and the API below it.
func TestTodo(t *testing.T) {
	t.Parallel()
	p := deploy(t, "todo")
	p.nearkey(t, "import", "todo-page", "page")
	todo := worker("todo")
	t.Run("browser", func(t *testing.T) { todoBrowser(t, todo) })
	t.Run("api", func(t *testing.T) { todoAPI(t, todo) })
	t.Run("page", func(t *testing.T) {
		// A new page without a deploy.
		p.nearkey(t, "kv", "put", "todo-page", "news.html", "<h1>News</h1>")
		todo.get(t, "/news.html").want(t, http.StatusOK, "<h1>News</h1>").wantHeader(t, "Content-Type", "text/html; charset=utf-8")
		todo.get(t, "/style.css").want(t, http.StatusOK, "").wantHeader(t, "Content-Security-Policy", "default-src 'self'")
		todo.get(t, "/absent.html").want(t, http.StatusNotFound, "")
		todo.get(t, "/news.exe").want(t, http.StatusNotFound, "")
	})
}

// todoItem is an item of a list.
type todoItem struct {
	ID   string `json:"id,omitempty"`
	Text string `json:"text"`
	Done bool   `json:"done"`
}

func todoBrowser(t *testing.T, todo site) {
	b := openBrowser(t)
	const script = `<script>alert(1)</script>`
	b.do(t, chromedp.Navigate(string(todo)+"/"), says("#message", "Nothing to do."))
	address := b.address(t)
	b.do(t, add("buy milk"), rows(1), add(script), rows(2), says("#message", ""))
	b.do(t, chromedp.Click("li:nth-child(1) input"), chromedp.WaitVisible("li.done:nth-child(1)"))
	b.do(t, chromedp.Reload(), rows(2), chromedp.WaitVisible("li.done:nth-child(1)"))
	b.do(t, says("li:nth-child(1) span", "buy milk"), says("li:nth-child(2) span", script))

	list := path.Base(address)
	items := namespaceOf(t, "todo-items")
	if err := stored(items.metadata(t, list+"/"), todoItem{"", "buy milk", true}, todoItem{"", script, false}); err != nil {
		t.Fatal(err)
	}
	b.do(t, chromedp.Click("li:nth-child(1) button"), rows(1), says("li:nth-child(1) span", script))
	b.do(t, chromedp.Reload(), rows(1), says("li:nth-child(1) span", script))

	// Another list is another's.
	b.do(t, chromedp.Navigate(string(todo)+"/"), says("#message", "Nothing to do."), rows(0))
	b.do(t, chromedp.Navigate(address), rows(1))
	if err := stored(items.metadata(t, list+"/"), todoItem{"", script, false}); err != nil {
		t.Fatal(err)
	}
}

// add types an item and sends it by the Enter key.
func add(text string) step { return chromedp.SendKeys("#text", text+"\r") }

// rows waits until the list shows so many items.
func rows(n int) step {
	return until(fmt.Sprintf(`document.querySelectorAll("#items li").length === %d`, n))
}

// metadata are the metadata of all keys with a prefix.
func (n namespace) metadata(t *testing.T, prefix string) (all []json.RawMessage) {
	t.Helper()
	for _, k := range n.keys(t, prefix) {
		all = append(all, k.Metadata)
	}
	return all
}

// stored complains unless the metadata are these items.
func stored(all []json.RawMessage, want ...todoItem) error {
	if len(all) != len(want) {
		return fmt.Errorf("%d items are stored, want %d", len(all), len(want))
	}
	for i, text := range all {
		var got todoItem
		if err := json.Unmarshal(text, &got); err != nil || got != want[i] {
			return errors.Join(err, fmt.Errorf("item %d is %s, want %+v", i, text, want[i]))
		}
	}
	return nil
}

func todoAPI(t *testing.T, todo site) {
	const list = "/api/00000000-0000-4000-8000-000000000000"
	todo.get(t, list).want(t, http.StatusOK, "[]")
	var made, first todoItem
	todo.do(t, http.MethodPost, list, `{"text": " buy milk "}`).want(t, http.StatusCreated, "").into(t, &made)
	if made.Text != "buy milk" || made.Done || made.ID == "" {
		t.Fatalf("made %+v", made)
	}
	todo.do(t, http.MethodPut, list+"/"+made.ID, `{"text": "buy milk", "done": true}`).want(t, http.StatusOK, "")
	first = made
	todo.do(t, http.MethodPost, list, `{"text": "drink it"}`).want(t, http.StatusCreated, "").into(t, &made)
	var all []todoItem
	todo.get(t, list).want(t, http.StatusOK, "").into(t, &all)
	first.Done = true
	if len(all) != 2 || all[0] != first || all[1] != made {
		t.Fatalf("the list is %+v", all)
	}
	todo.do(t, http.MethodDelete, list+"/"+made.ID, "").want(t, http.StatusNoContent, "")
	todo.get(t, list).want(t, http.StatusOK, "").into(t, &all)
	if len(all) != 1 {
		t.Fatalf("the list is %+v", all)
	}
	// What does not fit. {"text":"…","done":false} has 24 bytes beside the text.
	todo.do(t, http.MethodPost, list, `{"text": "`+strings.Repeat("x", 1024-24)+`"}`).want(t, http.StatusCreated, "")
	todo.do(t, http.MethodPost, list, `{"text": "`+strings.Repeat("x", 1024-23)+`"}`).want(t, http.StatusRequestEntityTooLarge, "")
	for _, bad := range []string{"", "nonsense", "{}", "null", `{"text": " "}`, `{"text": 5}`} {
		todo.do(t, http.MethodPost, list, bad).want(t, http.StatusBadRequest, "Send")
	}
	todo.do(t, http.MethodPatch, list, "{}").want(t, http.StatusMethodNotAllowed, "")
	todo.get(t, "/api/guess").want(t, http.StatusNotFound, "")
}
