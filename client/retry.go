package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"
)

// How long a call waits before it is tried again: twice as long each time, with
// jitter so that clients do not come back all at once. A server's own wish
// (Retry-After) is granted up to Config.MaxWait.
const (
	firstWait = 100 * time.Millisecond
	mostWait  = 5 * time.Second
)

// retry calls try until it succeeds, its error is final, or the attempts are used up.
func (c *Client) retry(ctx context.Context, call call, try func() error) error {
	wait := firstWait
	for attempt := 1; ; attempt++ {
		err := try()
		if err == nil {
			return nil
		}
		asked, again := repeatable(call, err)
		if !again || attempt >= c.config.Attempts || asked > c.config.MaxWait {
			return err
		}
		pause := max(asked, wait/2+rand.N(wait/2))
		if sleepErr := sleep(ctx, pause); sleepErr != nil {
			return fmt.Errorf("%w, while waiting to repeat after: %w", sleepErr, err)
		}
		wait = min(2*wait, mostWait)
	}
}

// repeatable reports whether the call may succeed when repeated and repeating it
// does no harm, and how long the server asked to wait.
func repeatable(call call, err error) (asked time.Duration, again bool) {
	var answer *Error
	if errors.As(err, &answer) {
		if !answer.Overloaded() {
			return 0, false
		}
		// 429 means refused. A call that must not be done twice is repeated after
		// it, and not after a 5xx, which does not say whether it was done.
		return answer.RetryAfter, call.idempotent || answer.StatusCode == http.StatusTooManyRequests
	}
	var connection *connectionError
	if errors.As(err, &connection) {
		return 0, (call.idempotent || connection.notSent()) && !connection.notTrusted()
	}
	return 0, false
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
