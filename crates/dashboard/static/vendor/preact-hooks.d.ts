// What the page uses of the hooks of Preact 11.
export interface Ref<T> { current: T }
type Effect = () => void | (() => void);
export function useState<T>(initial: T | (() => T)): [T, (value: T | ((before: T) => T)) => void];
export function useRef<T>(initial: T): Ref<T>;
export function useEffect(effect: Effect, inputs?: readonly unknown[]): void;
export function useLayoutEffect(effect: Effect, inputs?: readonly unknown[]): void;
export function useMemo<T>(make: () => T, inputs: readonly unknown[]): T;
