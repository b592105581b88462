package guard

import (
	"context"
	"time"
)

// call is a call under way.
type call struct {
	began      time.Time
	end        context.CancelCauseFunc
	prev, next *call
}

// list is the calls under way in the order in which they began.
type list struct {
	first, last *call
	n           int
}

func (l *list) push(c *call) {
	c.prev = l.last
	if l.last != nil {
		l.last.next = c
	} else {
		l.first = c
	}
	l.last = c
	l.n++
}

func (l *list) remove(c *call) {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		l.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		l.last = c.prev
	}
	l.n--
}
