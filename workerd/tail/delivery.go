package tail

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/nearkey/nearkey/catalog"
)

// HeaderIngest has what permits an edge to deliver to a tail.
const HeaderIngest = "X-NK-Ingest"

// DeliverTo returns a Delivery to the API whose base URL is base, such as
// https://HOST:8790/client/v4.
func DeliverTo(base string, client *http.Client) Delivery {
	return func(ctx context.Context, accountID, worker string, t catalog.PublishedTail, events []byte) error {
		address := fmt.Sprintf("%s/accounts/%s/workers/scripts/%s/tails/%s/events", base, accountID, url.PathEscape(worker), t.ID)
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(events))
		if err != nil {
			return fmt.Errorf("deliver to a tail: %w", err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set(HeaderIngest, t.Ingest)
		res, err := client.Do(r)
		if err != nil {
			return fmt.Errorf("deliver to a tail: %w", err)
		}
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection is used again
		switch {
		case res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusForbidden:
			return ErrTailClosed
		case res.StatusCode >= 300:
			return fmt.Errorf("deliver to a tail: the server answered %s", res.Status)
		}
		return nil
	}
}
