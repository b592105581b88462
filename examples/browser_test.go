package examples_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/nearkey/nearkey/internal/nearkeytest"
)

// browser is a tab of a Chromium of its own.
type browser struct{ tab context.Context }

// A step is something that a user does or waits for.
type step = chromedp.Action[chromedp.Void]

// openBrowser starts Chromium without a window. It is gone when the test is.
func openBrowser(t *testing.T) browser {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox, // root has no other way; it sees our own pages alone
		chromedp.UserDataDir(t.TempDir()),
	)
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	tab, forget := chromedp.NewContext(allocator)
	t.Cleanup(forget)
	t.Cleanup(func() {
		if err := chromedp.Cancel(tab); err != nil {
			t.Errorf("close the browser: %v", err)
		}
	})
	if err := chromedp.Do(tab); err != nil {
		t.Fatalf("start chromium ('make deps' installs it): %v", err)
	}
	return browser{tab}
}

// do does what a user would do. It may take as long as nearkeytest.Patience.
func (b browser) do(t *testing.T, steps ...step) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.tab, nearkeytest.Patience)
	defer cancel()
	for i, s := range steps {
		if err := chromedp.Do(ctx, s); err != nil {
			page, _ := chromedp.Run(b.tab, chromedp.OuterHTML("html")) // shown as far as it is known
			t.Fatalf("step %d: %v; the page is\n%s", i+1, err, page)
		}
	}
}

// address is the address of the page.
func (b browser) address(t *testing.T) string {
	t.Helper()
	address, err := chromedp.Run(b.tab, chromedp.Location())
	check(t, err)
	return address
}

// until waits until an expression of JavaScript is true.
func until(expression string) step {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := chromedp.Poll[bool](expression)(ctx, t)
		return err
	})
}

// says waits until an element has exactly this text.
func says(selector, text string) step {
	quoted, _ := json.Marshal(text) // a string is always JSON
	return until(fmt.Sprintf(`document.querySelector(%q)?.textContent === %s`, selector, quoted))
}
