// Doing something at most so often, and never for something that is no longer the latest.

/**
 * `run` at once when it is asked for, and then not again before `gapMs` and before the last one
 * has ended; asked for many times meanwhile, it runs once more, with the last argument.
 * @template T
 * @param {(argument: T) => unknown} run
 * @param {number} gapMs
 * @returns {(argument: T) => void}
 */
export const paced = (run, gapMs) => {
  /** @type {{argument: T} | null} */
  let waiting = null;
  let busy = false;

  const go = async () => {
    busy = true;
    while (waiting !== null) {
      const { argument } = waiting;
      waiting = null;
      const gap = new Promise((resolve) => setTimeout(resolve, gapMs));
      try {
        await run(argument);
      } catch (error) {
        reportError(error);
      }
      await gap;
    }
    busy = false;
  };

  return (argument) => {
    waiting = { argument };
    if (!busy) void go();
  };
};
