// Who meets whom, apart from where that is kept.

const MAX_DRAWS = 100; // by then chance has found a round without repetitions, if there is one

/**
 * Puts everybody into one group of two; if their number is odd, one group has three.
 * Of many draws it is the one in which the fewest meet again who met the last time.
 * @param {string[]} people
 * @param {string[][]} last
 */
export function pair(people, last) {
	const met = new Set(last.flatMap(meetings));
	let best = { groups: /** @type {string[][]} */ ([]), again: Infinity };
	for (let i = 0; i < MAX_DRAWS && best.again > 0; i++) {
		const groups = cut(shuffled(people));
		const again = groups.flatMap(meetings).filter((meeting) => met.has(meeting)).length;
		if (again < best.again) {
			best = { groups, again };
		}
	}
	return best.groups;
}

/**
 * Every two of a group, in the order of their names.
 * @param {string[]} group
 */
function meetings(group) {
	const sorted = [...group].sort();
	return sorted.flatMap((a, i) => sorted.slice(i + 1).map((b) => JSON.stringify([a, b])));
}

/** @param {string[]} people */
function cut(people) {
	/** @type {string[][]} */
	const groups = [];
	for (let i = 0; i < people.length; i += 2) {
		groups.push(people.slice(i, i + 2));
	}
	if (groups.length > 1 && people.length % 2 === 1) {
		const [odd] = /** @type {string[]} */ (groups.pop());
		groups[groups.length - 1].push(odd); // nobody sits alone
	}
	return groups;
}

/**
 * Every order is equally likely (Fisher and Yates).
 * @param {string[]} people
 */
function shuffled(people) {
	const all = [...people];
	for (let i = all.length - 1; i > 0; i--) {
		const j = Math.floor(Math.random() * (i + 1));
		[all[i], all[j]] = [all[j], all[i]];
	}
	return all;
}
