// What the page uses of Preact 11.
export interface VNode { type: unknown; props: object }
export type Child = VNode | string | number | boolean | null | undefined | Child[];
export type Component<P> = (props: P & { children?: Child }) => Child;
export function h(type: string | Component<any>, props: object | null, ...children: Child[]): VNode;
export function render(node: Child, parent: Element): void;
